"""Run exported graphs and compare them with PyTorch."""
