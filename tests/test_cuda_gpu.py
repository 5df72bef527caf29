"""What only a CUDA device can show: streams, graphs, large tensors. And the error without one."""

import pytest
import torch

from densesiam import ops, reference


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_backend_is_refused():
    with (
        pytest.raises(RuntimeError, match=r"backend 'cuda' cannot be used: it was (not )?built"),
        ops.use_backend("cuda"),
    ):
        pass


def features(*shape, dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randn(shape, device="cuda", generator=generator, dtype=dtype)


def boxes(batch):
    return torch.tensor([[0.1, 0.9, 0.8, 0.05]], device="cuda").repeat(batch, 1)


CALLS = {
    "overlap_sample": lambda p, z: ops.overlap_sample(p, boxes(len(p)), 7),
    "pixel_similarity": lambda p, z: ops.pixel_similarity(p, z, "cross_entropy"),
    "overlap_similarity": lambda p, z: ops.overlap_similarity(p, z, boxes(len(p)), None, 7),
    "region_pool": lambda p, z: ops.region_pool(p, z[:, :27].contiguous()),
    "pseudo_label_loss": lambda p, z: ops.pseudo_label_loss(p, z, rebalance="inverse"),
}


@pytest.mark.gpu
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestDevice:
    def test_runs_on_the_current_stream(self, call):
        p, z = features(8, 64, 40, 40).requires_grad_(), features(8, 64, 40, 40)
        with ops.use_backend("cuda"):
            expected = call(p, z)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                torch.cuda._sleep(10_000_000)
                late = p * 2  # not ready before the sleep ends
                result = call(late / 2, z)
            torch.cuda.current_stream().wait_stream(stream)
        torch.testing.assert_close(result, expected)

    def test_is_captured_by_a_graph(self, call):
        p, z = features(4, 64, 20, 20).requires_grad_(), features(4, 64, 20, 20)
        with ops.use_backend("cuda"):
            warm_up = torch.cuda.Stream()
            warm_up.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm_up):
                torch.autograd.grad(call(p, z).sum(), p)
            torch.cuda.current_stream().wait_stream(warm_up)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = call(p, z)
                (grad,) = torch.autograd.grad(result.sum(), p)
            with torch.no_grad():
                p.copy_(features(4, 64, 20, 20).flip(0))
            graph.replay()
            expected = call(p, z)
            (expected_grad,) = torch.autograd.grad(expected.sum(), p)
        assert torch.equal(result, expected)
        assert torch.equal(grad, expected_grad)

    def test_mixed_types_under_autocast(self, call):
        p, z = features(4, 64, 20, 20, dtype=torch.bfloat16), features(4, 64, 20, 20)
        with torch.autocast("cuda", torch.bfloat16), ops.use_backend("cuda"):
            result = call(p, z)
        with ops.use_backend("cuda"):
            torch.testing.assert_close(result.float(), call(p.float(), z), rtol=0.02, atol=0.02)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tensors_beyond_32_bit_indices(layout):
    # 2^31 + elements; the last image is where a 32-bit index would have wrapped around.
    shape = (33, 64, 1024, 1024)
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free device memory")
    p = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=layout)
    for image in p:
        image.normal_()
    last = p[-1:].clone()
    with ops.use_backend("cuda"):
        whole = ops.pixel_similarity(p, p, reduction="none")[-1:]
        samples = ops.overlap_sample(p, boxes(33), 16)[-1:]
        labels = ops.label_map(p, 64)[-1:]
    torch.testing.assert_close(
        whole, reference.pixel_similarity(last, last, reduction="none"), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(samples, reference.overlap_sample(last, boxes(1), 16))
    assert (labels == reference.label_map(last, 64)).float().mean() > 0.999  # near ties may differ
