"""Graphs for TensorRT: attention with explicit masks, and precisions as QuantizeLinear pairs."""

from . import kv_cache, llm, precision, t5

__all__ = ["kv_cache", "llm", "precision", "t5"]
