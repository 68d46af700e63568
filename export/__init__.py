"""Checkpoint -> bundle (installed as `blip2rt_export`). Knows PyTorch and ONNX, nothing about training."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by ONNX Runtime's package when it is imported
