"""Networks: the encoder, and the projectors and predictors that stand on it."""

from densesiam.models.encoder import Encoder
from densesiam.models.heads import Predictor, Projector

__all__ = ["Encoder", "Predictor", "Projector"]
