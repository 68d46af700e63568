"""Runs the measurements one after the other and collects them in one dict, the JSON of `blip2rt-bench`.

Times in the dict are in seconds.
"""

import datetime
import importlib.util
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle import Bundle, read
from ..errors import Blip2rtError
from ..version import __version__
from . import llama_peer, machine, worker
from .stages import Workload

LLAMA = "llama.cpp"
PEERS = {
    "hf-fp32": "transformers, eager, float32",
    "hf-bf16": "transformers, eager, bfloat16",
    LLAMA: "the language model alone, Q4_0",
}
WARM_STARTS = 3
TURNS = 5  # with a peer that is measured in turns with ours
GROWTH_REPEAT = 5


@dataclass(frozen=True)
class Plan:
    """What to measure.

    config: the folder from which peers build their model. cache: where llama.cpp's is kept. growth: also measure how
    times grow.
    """

    work: Workload
    geometry: str | None = None
    peers: tuple[str, ...] = ()
    config: str | None = None
    cache: Path | None = None
    growth: bool = False


def collect(plan: Plan) -> dict[str, Any]:
    """Measure everything. Raises Blip2rtError if a measurement of ours fails; a peer's error becomes its entry."""
    bundle = read(plan.work.bundle)
    result: dict[str, Any] = {
        "blip2rt": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "work": {**asdict(plan.work), "geometry": plan.geometry},
        "bundle": _describe(bundle),
        "start": _starts(plan.work, bundle),
    }
    _say("the stages")
    measured = worker.run_task("stages", asdict(plan.work))
    result["peak_rss_stages"] = measured["peak_rss"]
    result["stages"] = measured["stages"]
    result["rates"] = _rates(result["stages"], plan.work)
    result["peers"] = {name: _peer(plan, name) for name in plan.peers}
    result["growth"] = _growth(plan.work) if plan.growth else {}
    return result


def _growth(work: Workload) -> dict[str, Any]:
    """Measure with one thread and with all."""
    found = {}
    for threads in sorted({1, work.threads}):
        _say(f"how times grow, threads={threads}")
        given = asdict(replace(work, threads=threads, repeat=min(work.repeat, GROWTH_REPEAT)))
        found[str(threads)] = worker.run_task("growth", given)
    return found


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


def _rates(stages: dict[str, Any], work: Workload) -> dict[str, float | None]:
    step = stages.get("decode step")
    return {
        "tokens_per_second": None if step is None else work.batch / step["median"],
        "captions_per_second": work.batch / stages["caption"]["median"],
        "time_to_first_token": stages["first token"]["median"],
    }


def absent(peer: str) -> str | None:
    """Return why a peer cannot be measured and how to install it, or None if it is installed."""
    needed = llama_peer.NEEDED if peer == LLAMA else {"torch": "torch", "transformers": "transformers"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    return f"{', '.join(missing)} is not installed: pip install {' '.join(missing)}" if missing else None


def _peer(plan: Plan, name: str) -> dict[str, Any]:
    if reason := absent(name):
        return {"error": reason}
    _say(f"{name}: {PEERS[name]}")
    try:
        if name == LLAMA:
            return _turns(plan)
        given = {**asdict(plan.work), "name": name, "config": plan.config}
        return worker.run_json(name, "blip2rt.bench.torch_peer", given)
    except Blip2rtError as error:
        return {"error": str(error)}


def _turns(plan: Plan) -> dict[str, Any]:
    """Measure llama.cpp and our generation in turns; add the median of the turns' ratios to each stage."""
    assert plan.config is not None and plan.cache is not None
    model = llama_peer.model(Path(plan.config), plan.cache / f"{plan.geometry}-q4_0")
    given = {**asdict(plan.work), "model": str(model), "config": plan.config}
    turns = [
        (worker.run_task("generation", asdict(plan.work)), worker.run_json(LLAMA, "blip2rt.bench.llama_peer", given))
        for _ in range(TURNS)
    ]
    stages = {}
    for name in turns[0][1]["stages"]:
        pairs = [(ours["stages"][name]["median"], theirs["stages"][name]["median"]) for ours, theirs in turns]
        stages[name] = {
            "median": statistics.median(theirs for _, theirs in pairs),
            "ours": statistics.median(ours for ours, _ in pairs),
            "times_ours": statistics.median(theirs / ours for ours, theirs in pairs),
        }
    return {**turns[0][1], "stages": stages, "turns": turns}
