"""What all references share: precision, ties, counting, and when values can be read."""

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type to compute and accumulate in: float64 for float64, else float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def relative(weight: Tensor) -> Tensor:
    """Weights (B,) in units of the largest: all that a mean knows of them.

    Products with the weights themselves, and their sum, may be too large or too small for the type.
    What is not 0 stays so: an image of weight 0 counts nowhere, and any other does.
    """
    type_ = torch.finfo(weight.dtype)
    least = weight.new_full((1,), type_.tiny * type_.eps)  # there may be no weights, or none but 0
    scaled = weight / torch.cat([weight.abs(), least]).amax()
    return torch.where((scaled == 0) & (weight != 0), least, scaled)


def first_argmax(logits: Tensor) -> Tensor:
    """Index of the greatest entry along dimension 1; the lowest such index on a tie.

    ``torch.argmax`` promises nothing about ties, so the lowest index is taken explicitly. NaN
    counts as greater than every number, as it does in NumPy: the first NaN wins.
    """
    greatest = logits.amax(dim=1, keepdim=True)
    K = logits.shape[1]
    index = torch.arange(K, device=logits.device).view(-1, *[1] * (logits.ndim - 2))
    return torch.where((logits == greatest) | logits.isnan(), index, K).amin(dim=1)


def count(indices: Tensor, length: int) -> Tensor:
    """How often each of 0 .. length - 1 occurs in ``indices``: (length,) int64.

    It is ``torch.bincount``, which reads its result's length back to the host and so can be
    neither traced nor captured.
    """
    indices = indices.flatten()
    return indices.new_zeros(length).scatter_add(0, indices, torch.ones_like(indices))


def values_are_known(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read here and now.

    They cannot in a graph that is being made, by the compiler or by make_fx, of fake tensors, and
    under the transforms of torch.func; there a check of them is an operator.
    """
    return (
        not torch.compiler.is_compiling() and nobody_watches() and type(tensor) in ORDINARY_TENSORS
    )


ORDINARY_TENSORS = (Tensor, torch.nn.Parameter)
"""No others are of PyTorch alone."""

_BACKEND_SELECT = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
_USUAL_KEYS = {  # in inference mode, and outside
    _BACKEND_SELECT.raw_repr(),
    _BACKEND_SELECT.add(torch._C.DispatchKey.ADInplaceOrView).raw_repr(),
}


def nobody_watches() -> bool:
    """Whether the dispatcher hands calls to their kernels with nobody in between.

    Tracers, modes of torch_dispatch and transforms of torch.func add keys of theirs to those that
    every thread has.
    """
    return torch._C._dispatch_tls_local_include_set().raw_repr() in _USUAL_KEYS
