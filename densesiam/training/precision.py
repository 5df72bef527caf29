"""Which numbers a network computes with: float32, or bfloat16 where the device has it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

import torch
import yaml

from densesiam.methods.base import Trained
from densesiam.training.checkpoints import CheckpointConfig
from densesiam.training.options import TrainerOptions, accelerator_name

AUTO: Final = "auto"
FLOAT32: Final = "32-true"
BFLOAT16: Final = "bf16-mixed"


def has_bfloat16(device: str) -> bool:
    """Whether a kind of device multiplies matrices of bfloat16 itself.

    Processors do by AVX512-BF16 or AMX, NVIDIA's GPUs from compute capability 8.0 on. Others widen
    each number first, which takes longer than float32.

    Args:
        device: torch's name of the kind, "cpu" or "cuda".
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch 2.10 has no public name for them.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def quickest(device: str) -> Literal["32-true", "bf16-mixed"]:
    """What a kind of device computes in half the time, where it has that; else float32."""
    return BFLOAT16 if has_bfloat16(device) else FLOAT32


def settled(
    options: TrainerOptions, model: Trained, checkpoint: Mapping[str, Any] | None = None
) -> TrainerOptions:
    """Options whose precision is no longer "auto".

    A run that goes on keeps the precision that it began with, on every machine. Otherwise it is
    bfloat16 where the device has it and the model's training loses nothing by it, else float32.

    Args:
        options: how to train.
        model: what to train.
        checkpoint: of the run that goes on.
    """
    if options.precision != AUTO:
        return options
    text = (checkpoint or {}).get(CheckpointConfig.KEY, "{}")
    before = yaml.safe_load(text).get("trainer", {}).get("precision", AUTO)
    if before != AUTO:
        return replace(options, precision=before)
    there = quickest(accelerator_name(options))
    return replace(options, precision=there if model.learns_in_bfloat16 else FLOAT32)


def describe(options: TrainerOptions) -> str:
    """A line about the precision, for the log."""
    device = accelerator_name(options)
    name = "the GPU" if device == "cuda" else "the processor"
    line = f"precision: {options.precision}"
    if options.precision != BFLOAT16:
        return line
    if not has_bfloat16(device):
        return f"{line}, which {name} has no instructions for: 32-true would be quicker here"
    return f"{line}: {name} has bfloat16; --trainer.precision {FLOAT32} computes in float32"
