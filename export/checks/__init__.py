"""Run exported graphs: compare them with PyTorch, and measure the ranges of their activations."""
