"""The safety of single images and captions: scores, probabilities, decisions."""

from hysac.scoring.batches import BatchScorer
from hysac.scoring.operating_points import OperatingPoint, OperatingPoints, Probability, Reference
from hysac.scoring.scorer import SafetyScorer, Score

__all__ = [
    "BatchScorer",
    "OperatingPoint",
    "OperatingPoints",
    "Probability",
    "Reference",
    "SafetyScorer",
    "Score",
]
