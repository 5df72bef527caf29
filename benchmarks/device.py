"""The device that is measured."""

from __future__ import annotations

from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where tensors live."""

gpu: Any = torch.cuda if torch.cuda.is_available() else None
"""``torch.cuda``, or None without a GPU. Streams, graphs, events and memory are asked of it alone,
so that a stand-in can take its place and the same lines run without a GPU (tests/stand_in.py)."""
