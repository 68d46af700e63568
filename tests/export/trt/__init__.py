"""Graphs of the target trt."""
