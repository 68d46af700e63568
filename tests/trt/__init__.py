"""Tests of the backend trt on a simulated driver and TensorRT."""
