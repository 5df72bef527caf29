"""One module an operation: what the development tools know of it, beside its record.

Each has

- ``SHAPES``, and of these ``SCALED``, whose batch, side and threads are varied (None for none);
- ``problem(shape, setting)``: inputs, baselines and mandatory bytes;
- ``GPU_GOAL``: what is asked of its own shapes on a GPU; goals on a CPU are the shapes';
- ``cuda_kernels(shape, names)``: how the names of the CUDA kernels that do the bulk of the work
  begin in ``tools/audit.json``;
- ``triton_kernels(op, make, channels_last)``: calls of the Triton module ``op`` that launch every
  one of its kernels at the method's shapes, and yield a name each; with Triton kernels only.
"""

import importlib
from types import ModuleType

from densesiam.ops._operations import OPERATIONS

MODULES: dict[str, ModuleType] = {
    operation.name: importlib.import_module(f"{__name__}.{operation.name}")
    # Those that training calls come first.
    for operation in sorted(OPERATIONS.values(), key=lambda each: each.differentiable == 0)
}
