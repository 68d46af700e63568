"""Measures exported graphs: their error beside PyTorch, and the ranges of their activations."""
