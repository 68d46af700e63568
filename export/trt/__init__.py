"""Graphs for TensorRT: attention with explicit masks, and precisions as QuantizeLinear pairs."""

from . import caches, llm, precision, t5

__all__ = ["caches", "llm", "precision", "t5"]
