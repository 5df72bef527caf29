"""The machine runs what nvcc made, and counts what can be counted by hand."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from tools.sass.machine import Launch, Machine, UnknownInstructionError
from tools.sass.program import Program, compiled, parse_line, read_program

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")

KNOWN = Path(__file__).with_name("known.cu")


def run(name, *arguments, blocks=1, threads=32, architecture="sm_90"):
    """Counts of a kernel; arrays are passed by their address."""
    packed = b"".join(
        struct.pack("<Q", each.ctypes.data)
        if isinstance(each, np.ndarray)
        else struct.pack("<i", each)
        for each in arguments
    )
    program = read_program(compiled(KNOWN, architecture), name)
    counts, _ = Machine(program).run(Launch((blocks, 1, 1), (threads, 1, 1), packed))
    return program, counts


def of(program, counter, opcode):
    """What was counted at all instructions of an opcode."""
    return sum(counter[each.address] for each in program.instructions if each.opcode == opcode)


@pytest.mark.parametrize(("name", "wavefronts"), [("unpadded", 32), ("padded", 1)])
def test_column_of_a_tile(name, wavefronts):
    out = np.zeros(32, np.float32)
    program, counts = run(name, out)
    assert out.tolist() == list(range(32))
    assert of(program, counts.wavefronts, "LDS") == wavefronts
    assert max(counts.worst.values()) == wavefronts
    # A row is written at once.
    writes = of(program, counts.shared_accesses, "STS")
    assert writes == of(program, counts.wavefronts, "STS") == 32


@pytest.mark.parametrize(("stride", "ways"), [(1, 1), (2, 2), (16, 16), (17, 1), (0, 1)])
def test_conflicts_of_strides(stride, ways):
    out = np.zeros(32, np.float32)
    program, counts = run("sixteen_ways", out, stride)
    assert out.tolist() == [lane * stride for lane in range(32)]
    assert of(program, counts.wavefronts, "LDS") == ways


def test_a_divergent_loop_takes_as_long_as_its_last_lane():
    out = np.zeros(64, np.int32)
    program, counts = run("divergent", out, threads=64)
    wanted = []
    for lane in range(64):
        value = 0
        for i in range(lane):
            value ^= (value * 5 + i) & 0xFFFFFFFF
        wanted.append(value)
    assert out.view(np.uint32).tolist() == wanted
    # Once round for each i that any lane of the warp still has: 31 and 63 times. Lanes: all l.
    loop = [i for i in program.instructions if counts.issued[i.address] == 31 + 63]
    assert loop
    assert counts.lanes[loop[0].address] == sum(range(64))


def test_halves_of_a_warp_run_apart_and_meet_again():
    values, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    program, counts = run("halves", values, out, threads=64)
    wanted = []
    for lane in range(64):
        value = lane
        for i in range(10 if lane % 32 < 16 else 20):
            value = value * 7 + i if lane % 32 < 16 else value * 9 - i
        wanted.append(value)
    both = [(wanted[lane] + wanted[lane ^ 16]) % 2**32 for lane in range(64)]
    assert out.view(np.uint32).tolist() == both
    assert of(program, counts.issued, "STG") == of(program, counts.issued, "SHFL") == 2
    assert {10 * 2, 20 * 2} <= set(counts.issued.values())


def test_sectors_of_a_stride():
    values, out = np.arange(256, dtype=np.float32), np.zeros(128, np.float32)
    program, counts = run("strided", values, out, blocks=4)
    assert out.tolist() == list(range(0, 256, 2))
    # 64 words of a warp are 8 sectors, or 9 where they begin amid one.
    begins = values.ctypes.data % 32 != 0
    assert of(program, counts.sectors, "LDG") == 4 * (8 + begins)
    assert of(program, counts.requested, "LDG") == 4 * 32 * 4
    assert counts.loaded == 32 + begins


def dry(*lines, architecture, threads=128):
    """Counts and steps of a dry run of these lines."""
    code = [parse_line(f"/*{16 * i:04x}*/ {line} ; /* 0x0 */") for i, line in enumerate(lines)]
    program = Program("lines", architecture, code)
    launch = Launch((1, 1, 1), (threads, 1, 1), b"")
    with pytest.raises(UnknownInstructionError, match="counted, not computed"):
        Machine(program).run(launch)
    return Machine(program, dry=True).run(launch, trace=True)


def test_products_of_four_warps_are_counted_as_often_as_a_loop_goes_round():
    counts, steps = dry(
        "MOV R0, 0x3",
        "HGMMA.64x32x8.F32.TF32 R40, R56, gdesc[UR40], R40",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",
        "IADD3 R0, R0, -0x1, RZ",
        "ISETP.NE.AND P0, PT, R0, RZ, PT",
        "@P0 BRA 0x10",
        "EXIT",
        architecture=90,
    )
    assert counts.issued[0x10] == 4 * 3
    products = [step.cost.tolist() for step in steps if step.address == 0x10]
    assert products == [[4, 4, 4, 4]] * 3  # of m16n8k8: 64 x 32 x 8 are 16


def test_a_block_s_products_are_those_of_one_thread():
    counts, steps = dry(
        "ELECT P0, URZ, PT",
        # PTX: M / 16 from bit 24 on, N / 8 from bit 17 on, of 64 x 32; other bits are of the types.
        "UMOV UR7, 0x4080910",
        "@!P0 BRA 0x50",
        "UTCHMMA tmem[UR4], gdesc[UR8], tmem[UR5], tmem[UR6], idesc[UR7], UPT",
        "UTCBAR [UR4], URZ",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR6+0x20], R4",
        "@!P2 BRA 0x50",  # never: the products are done
        "EXIT",
        architecture=100,
        threads=32,
    )
    assert counts.lanes[0x30] == 1
    assert [step.cost.tolist() for step in steps if step.address == 0x30] == [[4 * 4]]
    assert counts.lanes[0x50] == 32


def test_some_blocks_stand_for_all():
    values, out = np.arange(256, dtype=np.float32), np.zeros(128, np.float32)
    pointers = struct.pack("<QQ", values.ctypes.data, out.ctypes.data)
    program, launch = (
        read_program(compiled(KNOWN), "strided"),
        Launch((4, 1, 1), (32, 1, 1), pointers),
    )
    whole, _ = Machine(program).run(launch)
    out[:] = -1
    part, steps = Machine(program, dry=True).run(launch, [1, 3], trace=True)
    assert {at: 2 * count for at, count in part.issued.items()} == dict(whole.issued)
    assert out.tolist() == [-1] * 128  # a dry run leaves memory alone
    assert len(steps) == len(part.issued)


def test_global_accesses_take_turns_in_banks():
    """As in shared memory: every second word is in half of the banks, every 32nd in one."""
    values, out = np.zeros(64, np.float32), np.zeros(1024, np.float32)
    for kernel, arrays, turns in (("strided", (values, out), [2, 1]), ("one_bank", (out,), [32])):
        pointers = struct.pack(f"<{len(arrays)}Q", *(array.ctypes.data for array in arrays))
        launch = Launch((1, 1, 1), (32, 1, 1), pointers)
        program = read_program(compiled(KNOWN), kernel)
        _, steps = Machine(program, dry=True).run(launch, [0], trace=True)
        assert [step.turns.tolist() for step in steps if step.turns is not None] == [
            [each] for each in turns
        ]


@pytest.mark.parametrize(
    ("architecture", "floats", "integers"),
    [("sm_80", "FMNMX", "IMNMX"), ("sm_90", "FMNMX", "VIMNMX"), ("sm_100", "FMNMX3", "VIMNMX")],
)
def test_extremes(architecture, floats, integers):
    nan = np.float32("nan")
    x = np.tile(np.array([1, -2, nan, 7, nan], np.float32), 20)[:96]  # each lane has other triples
    i = np.arange(64, dtype=np.uint32) * np.uint32(0x0F3157A9)
    f, u = np.zeros(64, np.float32), np.zeros(64, np.uint32)
    program, counts = run("extremes", x, f, i, u, architecture=architecture)
    lanes = x.reshape(3, 32).T.tolist()
    numbers = [[each for each in lane if each == each] for lane in lanes]
    assert {len(each) for each in numbers} == {1, 2, 3}
    assert f[:32].tolist() == [max(each) for each in numbers]
    assert f[32:].tolist() == [min(each) for each in numbers]
    pairs = i.reshape(2, 32).T.tolist()
    assert u[:32].tolist() == [max(each) for each in pairs]
    signed = [[each - 2**32 * (each >= 2**31) for each in pair] for pair in pairs]
    assert u[32:].view(np.int32).tolist() == [min(each) for each in signed]
    assert {floats, integers} <= {each.opcode for each in program.instructions}
    assert of(program, counts.issued, floats) > 0


@pytest.mark.parametrize(
    ("architecture", "extreme"), [("sm_80", "IMNMX"), ("sm_90", "VIMNMX3"), ("sm_100", "VIMNMX3")]
)
def test_integers(architecture, extreme):
    x = (np.arange(128, dtype=np.uint32) * np.uint32(0x9E3779B9)).view(np.int32)
    bits = np.arange(1, 33)
    x[96:] = bits
    out = np.zeros(128, np.int32)
    program, _ = run("integers", x, out, architecture=architecture)
    assert out[:32].tolist() == x[:96].reshape(3, 32).max(0).tolist()
    low = x[:32].astype(np.int64) % 2**bits
    signed = np.where(low >> (bits - 1), low - 2**bits, low)
    assert out[32:64].tolist() == signed.tolist()
    assert out[64:96].view(np.uint32).tolist() == low.tolist()
    total = int(x[1:32:2].astype(np.int64).sum()) % 2**32
    assert out[97:128:2].view(np.uint32).tolist() == [total] * 16
    assert not out[96:128:2].any()
    assert {extreme, "SGXT", "REDUX"} <= {each.opcode for each in program.instructions}


def test_pairs_of_floats():
    x = (np.arange(192, dtype=np.float32) / 8 - 10).reshape(3, 32, 2)
    x[:, 0] = np.array([1 + 2**-12, 1 + 2**-12, -1 - 2**-11])[:, None]  # 2^-24, if fused
    out = np.zeros((11, 32, 2), np.float32)
    program, _ = run("pairs", x, out, np.float32(1.5).view(np.int32), architecture="sm_100")
    a, b, c = x.astype(np.float64)  # in which all of these are exact
    wanted = np.stack(
        [
            a - b,
            a + 0.5,
            np.abs(a) + b[:, 1:],
            a * b,
            a * 1.5,
            a * np.array([3, 4]),
            a * b + c,
            a * b[:, :1] - 2,
            a + b[:, ::-1],
            a + b * [1, -1],
            a + b[:, ::-1] * [-1, 1],
        ]
    )
    assert (out == wanted.astype(np.float32)).all()
    assert (out[6, 0] == 2**-24).all()
    assert {"FADD2", "FMUL2", "FFMA2"} <= {each.opcode for each in program.instructions}
    parts = {operand.part for each in program.instructions for operand in each.operands}
    assert parts == {"", "HI_LO", "LO_HI", "HI_LO.NP", "LO_HI.NP"}


def test_a_half_is_added_to_a_float():
    halves = np.arange(64, dtype=np.float16) / np.float16(8)
    x, out = np.arange(32, dtype=np.float32) * np.float32(0.1), np.zeros(96, np.float32)
    program, _ = run("half_and_float", halves, x, out, architecture="sm_100")
    low, high = halves.reshape(32, 2).T.astype(np.float32)
    brain = (halves.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert (out.reshape(3, 32) == [low - x, high + x, brain + x]).all()
    texts = {each.text.split()[0] for each in program.instructions}
    assert {"FHADD", "FHADD.BF16"} <= texts


def test_a_float_is_rounded_to_a_bfloat16():
    # One and its next: below the middle of two, in it (the even one), above it, below zero.
    x = np.array([1, 1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1.5], np.float32)
    out = np.zeros(32, np.uint32)
    program, _ = run("rounded", np.resize(x, 32), out, architecture="sm_80")
    assert out[:6].tolist() == [0x3F80, 0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBFC0]
    assert any(each.text.startswith("F2F.BF16.F32") for each in program.instructions)


def test_extremes_of_warps():
    nothing, zero = 0x7FFFFFFF, 0x80000000  # no number, as hardware writes it; minus zero
    x = np.zeros((3, 32), np.uint32)
    x[0] = (np.arange(32, dtype=np.float32) - 20).view(np.uint32)
    x[0, 2] = 0x7FC00001  # no number, in a lane that is even
    x[1] = zero
    x[1, 7] = 0
    x[2] = 0xFFC00000  # no number at all
    out = np.zeros((3, 32, 8), np.uint32)
    program, _ = run("extremes_of_warps", x, out, threads=96, architecture="sm_100a")

    def bits(number):
        return int(np.float32(number).view(np.uint32))

    # Greatest and least without sign (of odd lanes, of all), with one, as floats: the bits of
    # negative floats rise as these fall, and are negative whole numbers or great ones.
    wanted = [
        [bits(-19), 0, 0x7FC00001, bits(-1), bits(11), bits(-20), nothing, bits(-19)],
        [zero, 0, 0, zero, 0, zero, 0, zero],
        [0xFFC00000] * 4 + [nothing] * 4,
    ]
    for warp in range(3):
        assert out[warp, 1::2].tolist() == [wanted[warp]] * 16
        assert out[warp, ::2, 1:7].tolist() == [wanted[warp][1:7]] * 16
        assert not out[warp, ::2, [0, 7]].any()
    texts = {each.text.split()[0] for each in program.instructions}
    assert {"CREDUX.MAX", "CREDUX.MIN.S32", "CREDUX.MAX.F32", "CREDUX.MIN.F32.NAN"} <= texts


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_arrays_that_are_indexed_at_run_time(architecture):
    x = np.arange(100, 100 + 64 * 32, dtype=np.int32).reshape(64, 32)
    out = np.zeros_like(x)
    program, counts = run("indexed", x, out, threads=64, architecture=architecture)
    words = x.copy()
    for lane in range(64):
        words[lane, lane & 31] = -1
        assert out[lane].tolist() == [words[lane, i * 7 + lane & 31] for i in range(32)]
    assert {"STL", "LDL"} <= {each.opcode for each in program.instructions}
    assert any(each.text.startswith("STL.128") for each in program.instructions)
    assert counts.lanes == {at: 32 * times for at, times in counts.issued.items()}


def test_halves_that_are_no_numbers():
    x = np.array([1, np.nan, np.inf, np.nan] * 16, np.float16)
    x[::4] = np.nan  # low and high: both, one, both, ...
    out = np.zeros(32, np.uint32)
    program, _ = run("halves_nan", x, out)
    assert out.tolist() == [3, 2] * 16
    assert "HSETP2" in {each.opcode for each in program.instructions}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_matrices_of_shared_memory(architecture):
    halves = np.arange(256, dtype=np.uint16)
    out = np.zeros(32 * 12, np.uint32)
    program, counts = run("matrices", halves, out, architecture=architecture)
    copied = halves.copy()
    copied[-8:] = 0
    matrices = copied.reshape(4, 8, 8)
    found = out.view(np.uint16).reshape(12, 8, 8)  # lane 4 g + t has the elements 2 t of row g
    assert (found[:4] == matrices).all()
    assert (found[4:8] == matrices.transpose(0, 2, 1)).all()
    # A row is 16 bytes, so that a matrix is one wavefront.
    assert of(program, counts.wavefronts, "LDSM") == 2 * 4
    assert of(program, counts.sectors, "LDGSTS") == 31 // 2 + 1
    if architecture != "sm_80":
        assert (found[8:] == matrices).all()
        assert of(program, counts.wavefronts, "STSM") == 4


@pytest.mark.parametrize(
    ("name", "transposed", "ways"),
    [("rows_72", False, 1), ("columns_72", True, 1), ("rows_64", False, 8)],
)
def test_matrices_of_16_bit_numbers(name, transposed, ways):
    numbers = np.arange(1000, 1256, dtype=np.uint16)
    out = np.zeros((32, 4, 2), np.uint16)
    program, counts = run(name, numbers, out)
    for lane in range(32):
        for matrix, held in enumerate(numbers.reshape(4, 8, 8)):
            wanted = held.T if transposed else held
            columns = lane % 4 * 2
            assert out[lane, matrix].tolist() == wanted[lane // 4, columns : columns + 2].tolist()
    # 8 rows of 16 bytes at once; 128 bytes apart they are all in the same banks.
    assert of(program, counts.wavefronts, "LDSM") == 4 * ways


def test_two_matrices_are_in_the_rows_of_16_lanes():
    numbers = np.arange(128, dtype=np.uint16)
    out = np.zeros((32, 4, 2), np.uint16)
    program, counts = run("two_matrices", numbers, out)
    assert out[:, 0].reshape(8, 8).tolist() == numbers[:64].reshape(8, 8).tolist()
    assert out[:, 1].reshape(8, 8).tolist() == numbers[64:].reshape(8, 8).tolist()
    assert not out[:, 2:].any()
    assert of(program, counts.wavefronts, "LDSM") == 2


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_product_of_16_bit_numbers(kind):
    a = np.arange(256, dtype=np.float32).reshape(16, 16) % 13 - 5
    b = np.arange(128, dtype=np.float32).reshape(16, 8) % 7 - 3

    def bits(numbers):  # whole numbers, which both types hold
        if kind == "float16":
            return numbers.astype(np.float16).view(np.uint16)
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)

    out = np.zeros((16, 8), np.float32)
    run(f"{kind}_product", bits(a), bits(b), out)
    assert out.tolist() == [
        [sum(a[i, k] * b[k, j] for k in range(16)) for j in range(8)] for i in range(16)
    ]


def test_a_copy_is_there_when_it_was_waited_for():
    values, out = np.arange(128, dtype=np.uint32), np.zeros((32, 4), np.uint32)
    swapped = values.reshape(16, 2, 4)[:, ::-1].reshape(32, 4)
    program, counts = run("copied_in_time", values, out)
    assert out.tolist() == swapped.tolist()
    # 512 bytes: 16 sectors, or 17 where they begin amid one, and four wavefronts.
    begins = values.ctypes.data % 32 != 0
    assert of(program, counts.sectors, "LDGSTS") == 16 + begins
    assert of(program, counts.wavefronts, "LDGSTS") == 4
    run("read_too_early", values, out)
    assert (out == 0xFFFFFFFF).all()  # what shared memory holds before


def test_of_groups_of_copies_the_last_are_under_way():
    values, out = np.arange(256, dtype=np.uint32), np.zeros((2, 128), np.uint32)
    run("copied_in_groups", values, out)
    assert (out[0] == values[:128]).all()
    assert (out[1] == 0xFFFFFFFF).all()


def test_what_is_no_memory_is_an_error():
    with pytest.raises(RuntimeError, match="which is no memory here"):
        run("strided", 16, 0, 16, 0)


@pytest.mark.parametrize(
    ("text", "opcode", "kinds"),
    [
        ("@!P0 IMAD.WIDE.U32 R2, R3, 0x4, R4", "IMAD", ["R", "R", "imm", "R"]),
        ("LDG.E.128.CONSTANT R4, desc[UR4][R2.64+0x10]", "LDG", ["R", "mem"]),
        ("FFMA R0, -R1, |R2|, c[0x0][0x210]", "FFMA", ["R", "R", "R", "c"]),
        ("ISETP.GE.U32.AND P0, PT, R0, UR4, !PT", "ISETP", ["P", "P", "R", "UR", "P"]),
    ],
)
def test_lines_are_read(text, opcode, kinds):
    found = parse_line(f"        /*0010*/   {text} ;    /* 0x0 */")
    assert (found.opcode, [each.kind for each in found.operands]) == (opcode, kinds)
    assert found.negated == text.startswith("@!")
