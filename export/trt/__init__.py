"""Graphs for TensorRT: attention with explicit masks, and precisions as QuantizeLinear pairs."""

from . import llm, precision, t5

__all__ = ["llm", "precision", "t5"]
