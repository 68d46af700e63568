"""Images and texts -> matches, embeddings and calibrated probabilities, from vision_features on."""

from .matcher import Matcher

__all__ = ["Matcher"]
