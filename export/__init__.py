"""Checkpoint -> bundle (installed as `blip2rt_export`). Knows PyTorch and ONNX, nothing about training."""
