"""Graphs of the targets trt and trt-native."""
