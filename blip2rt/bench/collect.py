"""Runs the measurements one after the other and collects them in one dict, the JSON of `blip2rt-bench`.

Times in the dict are in seconds.
"""

import datetime
import importlib.util
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..bundle import Bundle, read
from ..errors import Blip2rtError
from ..version import __version__
from . import machine, worker
from .stages import Workload

PEERS = {"hf-fp32": "transformers, eager, float32", "hf-bf16": "transformers, eager, bfloat16"}
WARM_STARTS = 3


@dataclass(frozen=True)
class Plan:
    """What to measure. config: the folder from which peers build their model."""

    work: Workload
    geometry: str | None = None
    peers: tuple[str, ...] = ()
    config: str | None = None


def collect(plan: Plan) -> dict[str, Any]:
    """Measure everything. Raises Blip2rtError if a measurement of ours fails; a peer's error becomes its entry."""
    bundle = read(plan.work.bundle)
    limits = [_limits(plan.work)]
    result: dict[str, Any] = {
        "blip2rt": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "work": {**asdict(plan.work), "geometry": plan.geometry},
        "bundle": _describe(bundle),
        "start": _starts(plan.work, bundle),
    }
    limits.append(_limits(plan.work))
    _say("the stages")
    measured = worker.run_task("stages", asdict(plan.work))
    result["peak_rss_stages"] = measured["peak_rss"]
    result["stages"] = measured["stages"]
    limits.append(_limits(plan.work))
    result["limits"] = {name: max(found[name] for found in limits) for name in limits[0]}
    if step := result["stages"].get("decode step"):
        _add_limit(step, bundle, result["limits"]["read_bytes"])
    result["rates"] = _rates(result["stages"], plan.work)
    result["peers"] = {name: _peer(plan, name) for name in plan.peers}
    return result


def _limits(work: Workload) -> dict[str, Any]:
    """Measure the machine's rates. Other programs only lower them: the best of several moments counts."""
    _say("the machine's limits")
    return worker.run_task("rates", {"threads": work.threads})


def _say(text: str) -> None:
    print(f"measuring {text}", file=sys.stderr, flush=True)


def _describe(bundle: Bundle) -> dict[str, Any]:
    files = bundle.manifest.files or {}
    return {
        "name": bundle.manifest.name,
        "path": str(bundle.path),
        "bytes": bundle.size,
        "precisions": {name: component.precision for name, component in bundle.manifest.components.items()},
        "files": {name: entry.size for name, entry in files.items()},
    }


def _starts(work: Workload, bundle: Bundle) -> dict[str, Any]:
    """Measure a start without cached files, and the median of several with them."""
    _say("cold and warm starts")
    one = asdict(replace(work, batch=1))
    cold = worker.run_task("start", one) if machine.drop_cached(bundle.path) else None
    warm = sorted((worker.run_task("start", one) for _ in range(WARM_STARTS)), key=lambda each: float(each["load"]))
    return {"cold": cold, "warm": warm[len(warm) // 2], "peak_rss": max(each["peak_rss"] for each in warm)}


def _add_limit(step: dict[str, Any], bundle: Bundle, read_bytes: float) -> None:
    """Add the time to read the language model's weights, and its share of the step's, unless a cache holds them."""
    seconds = step_bytes(bundle) / read_bytes
    step |= {"limit": seconds, "share": seconds / step["median"] if seconds <= step["median"] else None}


def step_bytes(bundle: Bundle) -> int:
    """Return the bytes of weights that a decode step reads: those of the language model's graph."""
    graph = bundle.graph("llm")
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.stem}.*"))


def _rates(stages: dict[str, Any], work: Workload) -> dict[str, float | None]:
    step = stages.get("decode step")
    return {
        "tokens_per_second": None if step is None else work.batch / step["median"],
        "captions_per_second": work.batch / stages["caption"]["median"],
        "time_to_first_token": stages["first token"]["median"],
    }


def absent() -> str | None:
    """Return why peers cannot be measured and how to install them, or None if they are installed."""
    missing = [module for module in ("torch", "transformers") if importlib.util.find_spec(module) is None]
    return f"{', '.join(missing)} is not installed: pip install {' '.join(missing)}" if missing else None


def _peer(plan: Plan, name: str) -> dict[str, Any]:
    if reason := absent():
        return {"error": reason}
    _say(f"{name}: {PEERS[name]}")
    given = {**asdict(plan.work), "name": name, "config": plan.config}
    try:
        return worker.run_json(name, "blip2rt.bench.torch_peer", given)
    except Blip2rtError as error:
        return {"error": str(error)}
