"""The audit holds the built CUDA library to its baseline, and its checks can fail."""

import dataclasses
import importlib.metadata
import json

import pytest

from tools import audit


@pytest.mark.slow  # the disassembly of six architectures is some 5 million lines
@pytest.mark.skipif(not audit.LIBRARY.exists(), reason="the CUDA library was not built")
def test_library_keeps_its_promises(capsys):
    assert audit.main(["--backend", "cuda"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "kernel", "message"),
    [
        ("sum_parts<float>", audit.Kernel(stack=8), "8 bytes of stack"),
        ("sum_parts<float>", audit.Kernel(local=2), "2 local accesses"),
        ("sum_parts<float>", audit.Kernel(float_atomics=1), "1 floating-point atomics"),
        ("label_map_pixels<4, float>", audit.Kernel(), "no 16-byte loads"),
        ("label_pixels_planar<PlanarSource<__half, 8> >", audit.Kernel(), "no 16-byte loads"),
        ("region_pool_logits<32, true, true, false, double>", audit.Kernel(), "no 16-byte loads"),
        ("region_pool_forward<32, true, false, false, float>", audit.Kernel(), "no tensor-core"),
        ("triton region_pool._forward<27 regions, float32>", audit.Kernel(), "no tensor-core"),
        ("triton label_map._forward<float32>", audit.Kernel(bfloat16=1), "1 kinds of arithmetic"),
        ("triton label_map._forward<float32>", audit.Kernel(shared=102400), "102400 bytes of sh"),
    ],
)
def test_rules_can_be_broken(name, kernel, message):
    assert message in "".join(audit.broken_rules("sm_90", name, kernel))


def test_unaligned_variants_need_no_wide_loads():
    assert audit.broken_rules("sm_90", "label_map_pixels<1, float>", audit.Kernel()) == []
    unaligned = "region_pool_forward<32, true, false, false, double>"
    assert audit.broken_rules("sm_90", unaligned, audit.Kernel()) == []


def test_regressions_are_found():
    def compare(**now):
        usual = {"registers": 40, "instructions": 500, "wide_loads": 1, "tensor": 4}
        before = {"sm_90": {"k": dataclasses.asdict(audit.Kernel(**usual))}}
        kernel = audit.Kernel(**{**usual, **now})
        return audit.regressions({"sm_90": {"k": kernel, "new": audit.Kernel(99)}}, before)

    assert compare() == []
    assert compare(registers=80) == ["sm_90 k: registers 40 -> 80"]
    assert compare(instructions=560) == []
    assert compare(instructions=600) == ["sm_90 k: instructions 500 -> 600"]
    assert compare(shared=4096) == ["sm_90 k: shared 0 -> 4096"]
    assert compare(tensor=0) == ["sm_90 k: tensor 4 -> 0"]


def test_numbers_are_compared_where_kernels_were_made_alike(capsys):
    """Of what is compiled for sm_90 alone, ptxas makes other code than of what suits sm_80 too."""
    whole, other = audit.read_baseline(["sm_80", "sm_90"]), audit.read_baseline(["sm_90"])
    assert "held to rules alone" in capsys.readouterr().out
    of_triton = {name for name in whole["sm_90"] if name.startswith(audit.TRITON)}
    assert set(other["sm_90"]) == of_triton
    assert set(whole["sm_90"]) > of_triton


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("/*0340*/ LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;", "wide_loads"),
        ("/*0340*/ LDG.E.128 R4, [R2.64] ;", "wide_loads"),
        ("/*0350*/ @!P0 STG.E.128 desc[UR4][R2.64], R4 ;", "wide_stores"),
        ("/*0360*/ LDL R3, [R1] ;", "local"),
        ("/*0370*/ STL.64 [R1+0x8], R3 ;", "local"),
        ("/*0380*/ HMMA.1688.F32.TF32 R4, R8, R2, R4 ;", "tensor"),
        ("/*0380*/ HGMMA.64x128x8.F32.TF32 R24, gdesc[UR4], R24 ;", "tensor"),
        ("/*0380*/ UTCHMMA gdesc[UR8], gdesc[UR6], tmem[UR4], UPT ;", "tensor"),
        ("/*0380*/ DMMA.8x8x4 R4, R8, R2, R4 ;", "tensor"),
        ("/*0390*/ REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R3 ;", "float_atomics"),
    ],
)
def test_opcodes_are_recognised(line, field):
    assert [name for name, pattern in audit.OPCODES.items() if pattern.search(line)] == [field]


def test_a_move_that_is_called_mma_is_none():
    line = "/*0380*/ HFMA2.MMA R5, -RZ, RZ, 0, 0 ;"
    assert not any(pattern.search(line) for pattern in audit.OPCODES.values())


def test_an_update_keeps_what_was_not_audited(monkeypatch, tmp_path):
    one, other = (dataclasses.asdict(audit.Kernel(registers=count)) for count in (1, 2))
    before = {"triton": "1.2", "sm_80": {"a": one, "triton b": one}, "sm_90": {"a": one}}
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(before))
    monkeypatch.setattr(audit, "BASELINE", path)
    audit.write_baseline({"sm_80": {"a": audit.Kernel(registers=2)}})
    expected = before | {"sm_80": {"a": other, "triton b": one}}
    assert json.loads(path.read_text()) == expected
    audit.write_baseline({"sm_90": {"triton c": audit.Kernel(registers=2)}})
    expected |= {"triton": importlib.metadata.version("triton")}
    expected["sm_90"] = {"a": one, "triton c": other}
    assert json.loads(path.read_text()) == expected
