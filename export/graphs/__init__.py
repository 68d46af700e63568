"""PyTorch modules -> ONNX graphs for ONNX Runtime: one file a component, `trace.py` for what they share."""
