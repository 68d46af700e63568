"""The backend trt: TensorRT runs the graphs, and kernels on the device run the search."""

from .backend import Backend

__all__ = ["Backend"]
