"""The backend trt: TensorRT runs the graphs, and kernels on the device run the search."""

from .backend import Backend
from .plans import PlanSizes

__all__ = ["Backend", "PlanSizes"]
