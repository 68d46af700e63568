"""Images and texts -> matches, embeddings and calibrated probabilities, from vision_features on."""

from .calls import MatchingCalls
from .matcher import Matcher
from .word_attention import require_maps, word_attention

__all__ = ["Matcher", "MatchingCalls", "require_maps", "word_attention"]
