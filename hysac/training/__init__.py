"""Training: the loop, and what it is made of."""

from hysac.training.config import TrainConfig
from hysac.training.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
