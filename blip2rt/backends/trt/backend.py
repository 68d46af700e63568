"""TensorRT: runs a bundle of the target trt on an NVIDIA GPU.

Plans come from the cache; a missing one is built first, which takes minutes and is logged. The core's loop decodes, as
for every backend; it runs plans through engine.py. `embed` copies a few rows of a table, so the CPU runs it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ...bundle import EMBED, Bundle
from ...native import native
from .. import ort
from . import builder, plans
from .cache import PlanCache, default_folder
from .cuda import Device, load_bindings
from .engine import Plan
from .plans import PlanSizes

if TYPE_CHECKING:
    from ...batching import Batching

_log = logging.getLogger("blip2rt")


class Backend(ort.Backend):
    """One bundle's plans on the first GPU."""

    devices, target = ("cuda",), "trt"

    def __init__(
        self,
        bundle: Bundle,
        *,
        plan_sizes: PlanSizes | None = None,
        batching: Batching | None = None,
        cache_bytes: int = 0,
    ) -> None:
        """plan_sizes: the sizes that plans are built for; None means PlanSizes(). batching, cache_bytes: as for ort.

        Raises BackendError if TensorRT, cuda-bindings, the driver, a GPU or memory is missing, and OptionError for
        invalid sizes.
        """
        plans.check_target(bundle)
        sizes, cache = plans.resolve(bundle, plan_sizes or PlanSizes()), PlanCache(default_folder())
        self._trt = builder.load_tensorrt()
        self._device = Device(load_bindings())
        gpu = plans.this_gpu()
        self._files = {
            component: plans.ensure(self._trt, bundle, component, sizes, gpu, cache, _report)
            for component in plans.components(bundle)
        }
        self._logger = builder.logger(self._trt)  # TensorRT does not keep it alive
        self._runtime = builder.create(self._logger, self._trt.Runtime)
        super().__init__(bundle, batching=batching, cache_bytes=cache_bytes)

    def _open_session(self, component: str, runtime: Any) -> Any:
        if component == EMBED:
            return super()._open_session(component, runtime)
        plan = Plan(self._device, self._trt, self._runtime, self._files[component], component, self._logger)
        return native.Session.over(f"the plan of {component}", plan, self._bundle.output_shapes(component))


def _report(text: str) -> None:
    (_log.warning if "building" in text else _log.info)("TensorRT plan of %s", text)
