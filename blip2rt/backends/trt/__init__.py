"""The backend trt: TensorRT runs the graphs, and the core's loop decodes."""

from .backend import Backend
from .plans import PlanSizes

__all__ = ["Backend", "PlanSizes"]
