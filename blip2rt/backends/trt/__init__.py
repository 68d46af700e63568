"""The backend trt: TensorRT runs the graphs, and our CUDA kernels run the search."""

from .backend import Backend
from .plans import PlanSizes

__all__ = ["Backend", "PlanSizes"]
