"""Quantization, and how graphs are verified."""
