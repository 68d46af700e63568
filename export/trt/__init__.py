"""Graphs for TensorRT: attention with explicit masks, and precisions as QuantizeLinear pairs."""
