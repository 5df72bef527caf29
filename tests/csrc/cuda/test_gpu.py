"""What only a GPU can show: streams, graphs, large tensors. And the error without one."""

import pytest
import torch

from benchmarks import device
from densesiam import ops, reference
from densesiam.ops._operations import OPERATIONS
from tests.tolerance import assert_close


@pytest.mark.skipif(bool(device.gpu), reason="there is a GPU")
def test_without_a_device_the_backend_is_refused():
    with (
        pytest.raises(RuntimeError, match=r"backend 'cuda' cannot be used: it was (not )?built"),
        ops.use_backend("cuda"),
    ):
        pass


def features(where, dtype=torch.float32):
    """Large enough to take a GPU some time; in main memory small."""
    shape = (8, 64, 40, 40) if where.type == "cuda" else (2, 32, 6, 7)
    generator = torch.Generator(where).manual_seed(0)
    return torch.randn(shape, device=where, generator=generator, dtype=dtype)


def boxes(maps):
    return torch.tensor([[0.1, 0.9, 0.8, 0.05]], device=maps.device).repeat(len(maps), 1)


class Given:
    """Makes an exemplary call of maps that there are."""

    def __init__(self, maps, box):
        self.maps, self.box = iter(maps), box

    def features(self, *shape):
        batch, channels, height, width = shape
        return next(self.maps)[:batch, :channels, :height, :width].contiguous()

    def boxes(self, batch):
        return self.box[:batch]

    def weights(self, batch):
        return torch.ones(batch, device=self.box.device)


def exemplary(operation):
    function = getattr(ops, operation.name)
    return lambda p, z, box: function(*operation.example(Given((p, z), box), *p.shape))


CALLS = {
    name: exemplary(operation) for name, operation in OPERATIONS.items() if operation.differentiable
}


@pytest.fixture(params=CALLS)
def call(request, gpu):
    if gpu.backend == "triton" and not OPERATIONS[request.param].triton:
        pytest.skip(f"{request.param} has no Triton kernels")
    return CALLS[request.param]


class TestDevice:
    def test_runs_on_the_current_stream(self, gpu, call):
        p, z = (features(gpu.device) for _ in range(2))
        p.requires_grad_()
        box = boxes(p)
        expected = call(p, z, box)
        stream = gpu.cuda.Stream()
        stream.wait_stream(gpu.cuda.current_stream())
        with gpu.cuda.stream(stream):
            gpu.cuda._sleep(10_000_000)
            late = p * 2  # not ready before the sleep ends
            result = call(late / 2, z, box)
        gpu.cuda.current_stream().wait_stream(stream)
        assert torch.equal(result, expected)

    def test_is_captured_by_a_graph(self, gpu, call):
        p, z = (features(gpu.device) for _ in range(2))
        p.requires_grad_()
        box = boxes(p)
        warm_up = gpu.cuda.Stream()
        warm_up.wait_stream(gpu.cuda.current_stream())
        with gpu.cuda.stream(warm_up):
            torch.autograd.grad(call(p, z, box).sum(), p)
        gpu.cuda.current_stream().wait_stream(warm_up)
        graph = gpu.cuda.CUDAGraph()
        with gpu.cuda.graph(graph):
            result = call(p, z, box)
            (grad,) = torch.autograd.grad(result.sum(), p)
        with torch.no_grad():
            p.copy_(p.flip(0, 1) + 1)
        graph.replay()
        expected = call(p, z, box)
        (expected_grad,) = torch.autograd.grad(expected.sum(), p)
        assert torch.equal(result, expected)
        assert torch.equal(grad, expected_grad)

    def test_mixed_types_under_autocast(self, gpu, call):
        p = features(gpu.device, dtype=torch.bfloat16)
        z = features(gpu.device)
        with torch.autocast(gpu.device.type, torch.bfloat16):
            result = call(p, z, boxes(p))
        # bfloat16 goes up to float32 beside it; alone, its samples are rounded once.
        assert_close(result, call(p.float(), z, boxes(p)).to(result.dtype), terms=1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tensors_beyond_32_bit_indices(gpu, layout):
    # 2^31 + elements; the last image is where a 32-bit index would have wrapped around.
    # (In main memory it is small: there tests/csrc/cuda/test_kernels.py and tests/kernels do this.)
    on_gpu = gpu.device.type == "cuda"
    images, side, needed = (33, 1024, 16 << 30) if on_gpu else (3, 12, 1)
    if gpu.cuda.mem_get_info()[0] < needed:
        pytest.skip("needs 16 GiB of free device memory")
    p = torch.empty(
        (images, 64, side, side), dtype=torch.bfloat16, device=gpu.device, memory_format=layout
    )
    for image in p:
        image.normal_()
    last = p[-1:].clone()
    size = min(side, 64)
    whole = ops.pixel_similarity(p, p, reduction="none")[-1:]
    samples = ops.overlap_sample(p, boxes(p), 7)[-1:]
    labels = ops.label_map(p, size)[-1:]
    losses = reference.pixel_similarity(last, last, reduction="none")
    assert_close(whole, losses, terms=3 * 64)
    assert_close(samples, reference.overlap_sample(last, boxes(last), 7), terms=1)
    # Near ties may differ.
    assert (labels == reference.label_map(last, size)).float().mean() > 0.999
