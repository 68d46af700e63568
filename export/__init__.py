"""Checkpoint -> bundle. Installed as `blip2rt_export`; knows PyTorch and ONNX, nothing about training or images' content."""
