"""What is measured: one operation at one shape, its peers, and the bytes it cannot avoid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Make = Callable[..., Tensor]
"""Makes a feature map of a shape, of a type, in a layout."""


@dataclass(frozen=True)
class Goal:
    """What a row should reach, forward and backward in float32; None is not asked.

    Attributes:
        eager: times faster than the library composition run eagerly.
        compiled: times faster than the same compiled.
        ceiling: share of the clone ceiling.
        memory: extra memory as a share of the eager composition's, at the most.
        two_ops: times faster than our own two operations.
        two_ops_memory: extra memory as a share of theirs, at the most.
        release: times faster than the release's arrangement.
        release_memory: extra memory as a share of that one's, at the most.
    """

    eager: float | None = None
    compiled: float | None = None
    ceiling: float | None = None
    memory: float | None = None
    two_ops: float | None = None
    two_ops_memory: float | None = None
    release: float | None = None
    release_memory: float | None = None


MEMORY_BOUND = Goal(5, 1.3, 0.9)
"""Of an operation on a GPU whose time is that of its bytes."""


@dataclass(frozen=True)
class Shape:
    """A named shape, without the batch. Which fields matter differs from operation to operation.

    Attributes:
        name: what it is called in tables and on the command line.
        channels: C, or the number of classes where channels are classes.
        height: of the map.
        width: of the map.
        size: side of the sampled grid or of the resized map.
        classes: regions that features are pooled into; channels of a composite's heads.
        variant: kind of loss, or how it is balanced.
        batch: images at the most, for shapes so large that fewer must do.
        own: whether the method itself has this shape.
        goal: what is asked of it on a CPU.
    """

    name: str
    channels: int
    height: int
    width: int
    size: int = 0
    classes: int = 0
    variant: str = ""
    batch: int | None = None
    own: bool = False
    goal: Goal | None = None


@dataclass(frozen=True)
class Setting:
    """What can be varied at every shape."""

    batch: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def layout(self) -> str:
        """Name of the layout."""
        return "channels_last" if self.channels_last else "contiguous"


@dataclass(frozen=True)
class KernelNames:
    """The parts that names of CUDA kernels are made of, at one shape and setting.

    Attributes:
        layout: "planar" or "pixels".
        element: the C++ type of an element.
        pack: elements that are read at once: 16 bytes of them, or 1 where they do not align.
    """

    layout: str
    element: str
    pack: int

    @classmethod
    def of(cls, shape: Shape, setting: Setting) -> KernelNames:
        """Those of the shape's maps."""
        run = shape.channels if setting.channels_last else shape.height * shape.width
        pack = 16 // setting.itemsize
        return cls(
            layout="pixels" if setting.channels_last else "planar",
            element="__half" if setting.dtype == torch.float16 else "float",
            pack=pack if run % pack == 0 else 1,
        )

    @property
    def source(self) -> str:
        """Of a kernel's argument that reads a map."""
        if self.layout == "pixels" and self.pack == 1:
            return f"StagedSource<{self.element}>"
        return f"{self.layout.capitalize()}Source<{self.element}, {self.pack}>"

    @property
    def direct(self) -> str:
        """Template arguments of a kernel that reads the map itself."""
        return f"{self.pack}, {self.element}" if self.layout == "pixels" else self.element


@dataclass(frozen=True)
class Part:
    """A single library call that does a part of the work, or all of it in another way.

    Attributes:
        prepare: from the problem's inputs to the call's, outside the timing.
        call: the call.
        differentiable: which of its inputs receive gradients.
    """

    prepare: Callable[..., list[Tensor]]
    call: Callable[..., Tensor]
    differentiable: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Problem:
    """One operation at one shape.

    Attributes:
        op: the operation's name.
        shape: the shape in words, for the table.
        make: new inputs; called several times, so that caches are cold.
        ours: the operation on those inputs, on whichever backend is active.
        eager: the best library composition of the same result, run eagerly and compiled.
        forward_bytes: what forward must read and write.
        backward_bytes: what backward must read and write.
        differentiable: which inputs receive gradients; none means forward only.
        formula: the same, written for torch.compile where the eager composition compiles to slower
            code; None for that one.
        release: the same in the arrangement of the authors' release, where that differs.
        comparable: from the inputs to some on which the release's arrangement gives the same
            result: it rounds crops to whole pixels. None if it always does.
        peers: other whole compositions by name (of `results.PEERS`), checked as the eager one is:
            "by_hand" is what one who knows the library's costs would write in its place.
        parts: single library calls by name.
        products: multiplications and additions of matrix products, forward and backward.
        exponentials: how many of them, forward and backward.
        forward_instructions: thread instructions that forward cannot do without.
        backward_instructions: the same of backward.
        mean: the result is one number, which takes a second launch.
        operands: type that matrix products may round their operands to; None for the result's.
        tolerance: of the result and the gradients in float32, relative to the largest element; of
            a composite relative to their lengths, beyond what its own rounding does.
        module: what a composite's parameters, the last of its inputs, belong to.
        ties: integer results must agree but for this share.
    """

    op: str
    shape: str
    make: Callable[[], list[Tensor]]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    forward_bytes: int
    backward_bytes: int = 0
    differentiable: tuple[int, ...] = (0,)
    formula: Callable[..., Tensor] | None = None
    release: Callable[..., Tensor] | None = None
    comparable: Callable[[list[Tensor]], list[Tensor]] | None = None
    peers: dict[str, Callable[..., Tensor]] | None = None
    parts: dict[str, Part] | None = None
    products: int = 0
    exponentials: int = 0
    forward_instructions: float = 0
    backward_instructions: float = 0
    mean: bool = False
    operands: torch.dtype | None = None
    tolerance: float = 1e-4
    module: nn.Module | None = None
    ties: float = 0.0

    @property
    def mandatory_bytes(self) -> int:
        """Forward and backward, inputs read once and outputs written once."""
        return self.forward_bytes + self.backward_bytes
