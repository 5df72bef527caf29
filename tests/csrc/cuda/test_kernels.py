"""The CUDA kernels on the emulator: independence of order, traffic, and exact division.

What they compute is held against the references by the op suite (backend "emulator").
"""

import numpy as np
import pytest
import torch

from densesiam import ops, reference
from densesiam.ops._operations import OPERATIONS
from tests.emulator import ORDERS, emulated, traced
from tests.ops.suite import LAYOUTS, Maker
from tests.tolerance import assert_close, assert_within, tolerance
from tests.untouched import untouched


def features(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def boxes(batch):
    return torch.tensor([[0.1, 0.9, 0.8, 0.05], [0.0, 0.2, 1.0, 0.7]]).repeat(batch, 1)[:batch]


def rois(images):
    """More boxes than a block picks at once, of any direction."""
    corners = 12 * torch.rand(300, 4, generator=torch.Generator().manual_seed(2)) - 2
    return torch.cat([torch.arange(300).remainder(images)[:, None], corners], dim=1)


# Operation, arguments that are not the example's, and the maps' side.
EXAMPLES = {name: (operation, {}, 8) for name, operation in OPERATIONS.items()}
EXAMPLES["pixel_similarity, cosine"] = OPERATIONS["pixel_similarity"], {2: "cosine"}, 8
EXAMPLES["roi_align, many boxes"] = OPERATIONS["roi_align"], {1: rois(2), 3: 1.0}, 8
EXAMPLES["overlap_sample, narrow planes"] = OPERATIONS["overlap_sample"], {2: 5}, 7


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("operation", "changes", "side"), EXAMPLES.values(), ids=EXAMPLES)
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(
    operation, changes, side, dtype, layout
):
    results = []
    for order in ORDERS:
        args = operation.example(Maker(dtype, layout, "cpu"), 2, 70, side, side)
        for i, value in changes.items():
            args[i] = value
        leaves = [a.requires_grad_() for a in args[: operation.differentiable]]
        with emulated(order, seed=7):
            result = getattr(ops, operation.name)(*args)
            grads = torch.autograd.grad(result.float().square().sum(), leaves) if leaves else ()
        results.append((result.detach(), *grads))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_counts_do_not_depend_on_the_order_of_threads_and_blocks():
    labels = torch.randint(5, (3, 40, 50), generator=torch.Generator().manual_seed(0))
    counts, maps = [], []
    for order in ORDERS:
        with emulated(order):
            counts.append(ops.confusion_matrix(labels.flip(0), labels, 5, 5, 3))
            maps.append(ops.label_map(features(2, 7, 6, 6), 13))
    assert all(torch.equal(each, counts[0]) for each in counts)
    assert all(torch.equal(each, maps[0]) for each in maps)


def moved(launches):
    return sum(each.loaded + each.stored for each in launches)


def size(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def test_out_of_range_pixels_are_dropped():
    # A GPU cannot raise without waiting for it, and neither does its code on the emulator.
    with emulated():
        matrix = ops.confusion_matrix(
            torch.tensor([0, 1, 2, -1, 1]), torch.tensor([0, 1, 0, 0, 9]), 2, 2, 255
        )
    assert matrix.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
class TestTraffic:
    """Distinct sectors of all launches, against inputs read once and outputs written once.

    Shapes keep the proportions of the method's: C = 128, many more pixels than images.
    """

    def case(self, dtype, layout, channels=128, side=24):
        p = features(2, channels, side, side, dtype=dtype).to(memory_format=layout)
        z = features(2, channels, side, side, dtype=dtype, seed=1).to(memory_format=layout)
        return p.requires_grad_(), z

    def check(self, call, forward, backward, p):
        with emulated():
            with traced() as launches:
                result = call()
            assert moved(launches) <= 1.1 * (forward + size(result))
            cotangent = torch.ones_like(result)
            with traced() as launches:
                torch.autograd.grad(result, p, cotangent)
            assert moved(launches) <= 1.1 * (backward + size(p, cotangent))

    @pytest.mark.parametrize("kind", ["cosine", "cross_entropy"])
    def test_pixel_similarity(self, kind, dtype, layout):
        p, z = self.case(dtype, layout)
        self.check(lambda: ops.pixel_similarity(p, z, kind), size(p, z), size(p, z), p)

    def test_overlap_sample(self, dtype, layout):
        p, _ = self.case(dtype, layout)
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
        self.check(lambda: ops.overlap_sample(p, whole, 24), size(p), size(p), p)

    def test_pseudo_label_loss(self, dtype, layout):
        p, z = self.case(dtype, layout)
        call = lambda: ops.pseudo_label_loss(p, z)  # noqa: E731  # short, and used once
        self.check(call, size(p, z), size(p), p)

    @pytest.mark.parametrize("classes", [27, 128])
    def test_rebalanced_pseudo_label_loss(self, dtype, layout, classes):
        p, z = self.case(dtype, layout, channels=classes)
        # A class's weight depends on all labels, so the pass that finds losses cannot weigh them.
        # It writes each pixel's label, loss and log sum exp; labels are read twice more (to count,
        # to weigh), losses once. Backward reads label and log sum exp. Of 128 float32 logits and
        # targets all this is 2 %, of 27 bfloat16 ones 22 %.
        pixels = 4 * p[:, 0].numel()
        self.check(
            lambda: ops.pseudo_label_loss(p, z, rebalance="inverse"),
            size(p, z) + (3 + 3) * pixels,
            size(p) + 2 * pixels,
            p,
        )

    @pytest.mark.parametrize("kind", ["cosine", "cross_entropy"])
    def test_overlap_similarity(self, kind, dtype, layout):
        p, z = self.case(dtype, layout)
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
        call = lambda: ops.overlap_similarity(p, z, whole, None, 24, kind)  # noqa: E731  # short, and used once
        # Backward writes the gradients of the samples, here as many as pixels, and gathers from
        # them in a second launch: a pixel's cells are known only when all losses are.
        self.check(call, size(p, z), size(p, z) + 2 * size(p), p)

    def test_overlap_similarity_of_a_sparse_grid(self, dtype, layout):
        # GridSample's own shape. 7 x 7 samples have their neighbours in 14 of 56 rows: all sectors
        # of these in a planar map, two pixels a sample in the other layout. Two rows of a planar
        # bfloat16 map are 7 sectors long and begin in the middle of one: they touch 8.
        p, z = self.case(dtype, layout, channels=64, side=56)
        planar = layout == torch.contiguous_format
        share = 14 / 56 * (8 / 7 if dtype == torch.bfloat16 else 1) if planar else (14 / 56) ** 2
        samples = share * size(p, z)
        gradients = 2 * size(p) * (7 / 56) ** 2  # of the samples: written, then gathered from
        call = lambda: ops.overlap_similarity(p, z, None, None, 7)  # noqa: E731  # short, and used once
        self.check(call, samples, samples + gradients, p)

    @pytest.mark.parametrize("regions", [27, 32])
    def test_region_pool(self, regions, dtype, layout):
        p, z = self.case(dtype, layout, side=64)
        logits = z[:, :regions].contiguous(memory_format=layout)
        # Two images are cut into 128 splits to fill a GPU, and each split's sums are written and
        # read again. Of the method's 64 images there are 4 splits: 3 % of the mandatory bytes.
        parts = 2 * (128 * 2 * regions * (128 + 1) * 4)
        self.check(lambda: ops.region_pool(p, logits), size(p, logits) + parts, size(p, logits), p)

    @pytest.mark.parametrize("regions", [27, 32])
    def test_region_pool_gradient_of_logits(self, regions, dtype, layout):
        p, z = self.case(dtype, layout, side=64)
        p = p.detach()
        logits = z[:, :regions].contiguous(memory_format=layout).requires_grad_()
        parts = 2 * (128 * 2 * regions * (128 + 1) * 4)  # as above
        call = lambda: ops.region_pool(p, logits)  # noqa: E731  # short, and used once
        self.check(call, size(p, logits) + parts, size(p, logits), logits)

    def test_label_map(self, dtype, layout):
        _, z = self.case(dtype, layout)
        with emulated(), traced() as launches:
            labels = ops.label_map(z, 96)
        assert moved(launches) <= 1.1 * size(z, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [3, 27, 200])  # 200 x 200 counts do not fit shared memory
def test_confusion_matrix_traffic(dtype, classes):
    prediction, label = (
        torch.randint(classes, (4, 160, 160), generator=torch.Generator().manual_seed(i)).to(dtype)
        for i in range(2)
    )
    with emulated(), traced() as launches:
        matrix = ops.confusion_matrix(prediction, label, classes, classes, -1)
    # A cell is added to where it lies: read and written. Cells that do not occur are not touched.
    touched = 2 * 32 * -(-matrix.numel() // 4)
    assert moved(launches) <= 1.1 * (size(prediction, label) + touched)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("channels", "side"), [(3, 1), (3, 17), (27, 7), (27, 21), (129, 5), (513, 3)]
)
def test_pixels_that_are_no_whole_packs(dtype, channels, side):
    # Images that begin in the middle of a pack, runs without a whole pack, several lanes a pixel,
    # and what does not fit shared memory; then all of it at an address that no pack begins at.
    shape = (3, channels, side, side)
    for offset in (0, 1):
        p, z = (
            torch.empty(features(*shape).numel() + offset, dtype=dtype)[offset:]
            .view(3, side, side, channels)
            .copy_(features(*shape, seed=seed).permute(0, 2, 3, 1))
            .permute(0, 3, 1, 2)
            for seed in range(2)
        )
        for call in (
            lambda m, a, b: m.pixel_similarity(a, b, "cross_entropy"),
            lambda m, a, b: m.pixel_similarity(a, b, "cosine"),
            lambda m, a, b: m.pseudo_label_loss(a, b),
            lambda m, a, _: m.pseudo_label_loss(a),
        ):
            leaf = p.detach().requires_grad_()
            with emulated():
                value = call(ops, leaf, z)
                (grad,) = torch.autograd.grad(value, leaf)
            wanted = p.detach().double().requires_grad_()
            right = call(reference, wanted, z.double())
            (right_grad,) = torch.autograd.grad(right, wanted)
            # Losses of up to 5; exponentials of up to 10, which is what their last place grows by.
            assert_close(value, right, terms=channels + 3 * side**2, rms=5)
            assert_close(
                grad, right_grad, terms=10 * channels, rms=right_grad.square().mean().sqrt()
            )


@pytest.mark.parametrize("channels", [5, 70])  # a warp has all of a pixel's, or half
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_each_pixel_of_planes_that_several_blocks_share_counts_once(dtype, channels):
    # An image of 2304 pixels is two blocks and more, of which none has a pixel for each thread.
    p, z = (features(2, channels, 48, 48, dtype=dtype, seed=seed) for seed in range(2))
    with emulated():
        for loss in (
            lambda reduction: ops.pixel_similarity(p, z, "cosine", None, reduction),
            lambda reduction: ops.pseudo_label_loss(p, z, reduction=reduction),
        ):
            each = loss("none")
            # Sums of the same numbers in another order.
            assert_close(
                loss("mean"), each.double().mean(), terms=each.numel(), rms=each.abs().max()
            )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("classes", "launches"), [(4096, 3), (4097, 5)])
def test_class_weights_of_as_many_classes_as_a_block_keeps_and_of_more(
    classes, launches, dtype, layout
):
    logits = Maker(dtype, layout, "cpu").features(3, classes, 4, 5)
    with emulated(), traced() as ran:
        found = ops.pseudo_label_loss(logits, rebalance="inverse")
    assert len(ran) == launches  # the memory of counts is cleared by torch
    wanted = reference.pseudo_label_loss(logits.double(), rebalance="inverse")
    # Losses of about 9 times weights of up to 60, of 60 pixels; exponentials of 4096 classes.
    assert_close(found, wanted, terms=60 + classes, rms=9)


class Untouched(Maker):
    """Makes maps in memory that is not there."""

    def features(self, *shape):
        return untouched(shape, self.dtype)


def beyond_32_bits():
    """Calls with an image of 2^31 elements: an argument, or a result."""
    make = Untouched(torch.float16, "contiguous", "cpu")
    image = make.features(1, 2, 1 << 15, 1 << 15)
    few, small, pixel = image[..., :1], image[..., :2, :2], image.view(1, 1 << 16, -1, 1)[:, :, :1]
    return {
        # Integers have one element a pixel, and their images need not be told apart.
        name: operation.example(make, 1, 2, 1 << 15, 1 << 15)
        for name, operation in OPERATIONS.items()
        if not operation.integers
    } | {
        "region_pool's regions": (pixel, pixel[:, : 1 << 15]),
        "label_map's labels": (small, (1 << 15, 1 << 16)),
        "overlap_sample's samples": (small, boxes(1), 1 << 15),
        "roi_align's cells": (small, rois(1), 1 << 15),
        "overlap_similarity's maps of z": (small, image, None, None, 4),
        "overlap_similarity's samples": (small, small, None, None, 1 << 15),
        "region_pool's logits": (few, image.view(1, -1, 1 << 15, 1)),
    }


@pytest.mark.parametrize("call", beyond_32_bits())
def test_images_beyond_32_bit_offsets_are_for_another_backend(call):
    op = call.split("'")[0]
    arguments = beyond_32_bits()[call]
    refusal = f"{op}: backend 'cpu' was asked for, but it takes at most 2147483647 images, of at"
    torch._dynamo.reset()
    compiled = torch.compile(getattr(ops, op), fullgraph=True, backend="eager")
    for function in (getattr(ops, op), compiled):
        with emulated(), pytest.raises(RuntimeError, match=refusal) as error:
            function(*arguments)
        assert int(str(error.value).rpartition(" ")[2]) >= 1 << 31
    if call == op:
        with emulated(), ops.use_backend("auto"):
            assert ops.explain(op, *arguments).backend == "reference"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grids_whose_taps_do_not_fit_shared_memory(layout):
    # 8 bytes a row or column of cells: 48 KB hold 6,144 of them.
    values = Maker(torch.float32, layout, "cpu").features(1, 9, 2, 3)
    grids = []
    for size in ((2, 6140), (2, 6150)):
        leaf = values.detach().requires_grad_()
        with emulated():
            samples = ops.overlap_sample(leaf, boxes(1), size)
        grad = torch.ones_like(samples) / size[1]
        with emulated():
            (found,) = torch.autograd.grad(samples, leaf, grad)
        wanted = leaf.detach().double().requires_grad_()
        right = reference.overlap_sample(wanted, boxes(1).double(), size)
        (right,) = torch.autograd.grad(right, wanted, grad.double())
        assert_close(found, right, terms=4 * size[0] * size[1])
        grids.append(found)
    # As many shares as make up a gradient of ones, however many cells there are.
    assert_close(grids[0].sum(), grids[1].double().sum(), terms=8 * 6150)


def test_exponential_is_as_exact_as_it_says():
    # csrc/numeric.h, exponential: but for the two units of the hardware's power of two.
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    found = np.exp2((x * np.float32(1.44269504)).astype(np.float64))
    right = np.exp(x.astype(np.float64))
    error = np.abs(found - right) / np.spacing(right.astype(np.float32))
    assert (error <= 1.3 * np.abs(x)).all()


def test_division_without_a_slow_path_rounds_correctly():
    # csrc/numeric.h, quotient: the hardware's reciprocal is within 1 unit of the last place.
    def fma(a, b, c):
        return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(
            np.float32
        )

    one = np.float32(1)
    counts = np.arange(1, 4097, dtype=np.float32)
    for cell in [0, 1, 2, 7, 100, 1023, 4095]:
        a = np.full_like(counts, cell + 0.5)
        for error in (-1, 0, 1):
            reciprocal = (1 / counts.astype(np.float64)).astype(np.float32)
            r = (reciprocal.view(np.int32) + error).view(np.float32)
            r = fma(fma(-counts, r, one), r, r)
            q = a * r
            q = fma(fma(-counts, q, a), r, q)
            q = fma(fma(-counts, q, a), r, q)
            assert np.array_equal(q, a / counts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("regions", [24, 40])
def test_region_pool_of_so_many_images_that_blocks_take_several_steps(regions, dtype, layout):
    # 400 images fill a GPU with one block each: it walks over all pixels, and 40 channels are more
    # than a step of the gradients holds.
    make = Maker(dtype, layout, "cpu")
    args = [make.features(400, 40, 5, 8), make.features(400, regions, 5, 8)]

    def results(function, args):
        leaves = [each.detach().requires_grad_() for each in args]
        value = function(*leaves)
        return [value, *torch.autograd.grad(value.sin().sum(), leaves)]

    with emulated():
        found = results(ops.region_pool, args)
    wanted = results(reference.region_pool, [each.double() for each in args])
    for actual, expected in zip(found, wanted, strict=True):
        # tf32 rounds masks and gradients of half types to 11 bits, as float16 has.
        rms = expected.abs().max()
        allowed = tolerance(2 * (40 + regions + 40), rms, dtype)
        assert_within(actual, expected, allowed.expand_as(expected))
