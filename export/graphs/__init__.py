"""Trace PyTorch modules as ONNX graphs: one file for each component; `trace.py` is shared."""
