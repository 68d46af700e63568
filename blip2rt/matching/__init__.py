"""Images and texts -> matches, embeddings and calibrated probabilities, from vision_features on."""

from .matcher import Matcher
from .word_attention import require_maps, word_attention

__all__ = ["Matcher", "require_maps", "word_attention"]
