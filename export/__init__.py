"""Export checkpoints as bundles, with PyTorch and ONNX (installed as `blip2rt_export`)."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it on import
