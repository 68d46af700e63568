"""Images and texts -> matches, embeddings and calibrated probabilities, from vision_features on."""

from .calls import MatchingCalls
from .matcher import Matcher

__all__ = ["Matcher", "MatchingCalls"]
