"""Networks: the encoder, and the projectors and predictors that stand on it."""

from typing import TYPE_CHECKING, Any

from densesiam.models.heads import Predictor, Projector

if TYPE_CHECKING:
    from densesiam.models.encoder import Encoder

__all__ = ["Encoder", "Predictor", "Projector"]


def __getattr__(name: str) -> Any:
    """The encoder when it is asked for: it needs timm, and the heads need torch alone."""
    if name != "Encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from densesiam.models.encoder import Encoder

    return Encoder
