"""Dense unsupervised learning: DenseSiam with fused CUDA, Triton and CPU operations."""

__version__ = "0.1.0"
