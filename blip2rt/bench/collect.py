"""Asks the workers one after the other and puts what they measured into one dict, the JSON of `blip2rt-bench`.

Knows which measurements there are and how they depend on each other; times in the dict are in seconds.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle import Bundle, read
from ..errors import Blip2rtError
from ..version import __version__
from . import costs, machine, peers, worker
from .stages import Work

STARTS = 3  # processes that are started warm
BATCHES, CALLERS = (1, 2, 4, 8, 16), (1, 2, 4, 8)
SCALING_RUNS = 3  # captions of each caller


@dataclass(frozen=True)
class Plan:
    """What to measure; `config` is the folder or hub id that peers build their model from."""

    work: Work
    geometry: str | None = None
    peers: tuple[str, ...] = ()
    config: str | None = None
    scaling: bool = False


def collect(plan: Plan) -> dict[str, Any]:
    """Everything. Raises Blip2rtError where our own measurements fail; a peer's failure is its entry."""
    bundle = read(plan.work.bundle)
    _say("the machine's limits")
    rates = worker.work("rates", {"threads": plan.work.threads})
    result: dict[str, Any] = {
        "blip2rt": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "limits": rates,
        "work": {**asdict(plan.work), "geometry": plan.geometry},
        "bundle": _describe(bundle),
        "start": _starts(plan.work, bundle),
    }
    _say("the stages")
    measured = worker.work("stages", asdict(plan.work))
    result["peak_rss_stages"] = measured["peak_rss"]
    result["stages"] = measured["stages"]
    _add_limits(result["stages"], bundle, plan.work, measured["positions"], costs.Rates(**rates))
    result["rates"] = _rates(result["stages"], plan.work)
    if Path(plan.work.image).read_bytes()[:2] == b"\xff\xd8":
        result["jpeg"] = worker.work("jpeg", asdict(replace(plan.work, batch=1)))
    result["peers"] = {name: _peer(plan, name) for name in plan.peers}
    result["scaling"] = list(_scaling(plan)) if plan.scaling else []
    return result


def _say(text: str) -> None:
    print(f"measuring {text}", file=sys.stderr, flush=True)


def _describe(bundle: Bundle) -> dict[str, Any]:
    files = bundle.manifest.files or {}
    return {
        "name": bundle.manifest.name, "path": str(bundle.path), "bytes": bundle.size,
        "precisions": {name: component.precision for name, component in bundle.manifest.components.items()},
        "files": {name: entry.size for name, entry in files.items()},
    }  # fmt: skip


def _starts(work: Work, bundle: Bundle) -> dict[str, Any]:
    """A process that finds nothing in memory, and the median of some that do."""
    _say("cold and warm starts")
    one = asdict(replace(work, batch=1))
    cold = worker.work("start", one) if machine.drop_cached(bundle.path) else None
    warm = sorted((worker.work("start", one) for _ in range(STARTS)), key=lambda each: float(each["load"]))
    return {"cold": cold, "warm": warm[len(warm) // 2], "peak_rss": max(each["peak_rss"] for each in warm)}


def _add_limits(stages: dict[str, Any], bundle: Bundle, work: Work, positions: int, rates: costs.Rates) -> None:
    """`limit`, what it is a limit of, and the share of it that was reached, for the stages that are a graph's run."""
    for name, cost in stage_costs(bundle, work, positions).items():
        if name in stages:
            seconds, kind = costs.limit(cost, rates)
            stages[name] |= {"limit": seconds, "limited_by": kind, "share": seconds / stages[name]["median"],
                             **asdict(cost)}  # fmt: skip


def stage_costs(bundle: Bundle, work: Work, positions: int) -> dict[str, costs.Cost]:
    """What each graph costs in its stage; `positions` are those of a prompt with its image."""
    manifest, batch = bundle.manifest, work.batch
    seen = manifest.components["vision"].outputs[0].shape[1]
    spec = manifest.llm
    assert spec is not None and isinstance(seen, int), "bundles that caption are measured"
    grid = ("pixels", manifest.image.height, manifest.image.width)
    llm, rows = bundle.graph("llm"), batch * work.beams
    if spec.encoder_decoder:
        read_in = costs.of_graph(bundle.graph("encoder"), {"inputs_embeds": batch * positions}, batch * positions)
        prefill = read_in + costs.of_graph(llm, {"inputs_embeds": batch}, batch, batch)
    else:
        prefill = costs.of_graph(llm, {"inputs_embeds": batch * positions}, batch * positions, batch)
    features = {"vision_features": batch * seen}
    return {
        "vision": costs.of_graph(bundle.graph("vision"), {}, batch * seen, batch, grid),
        "qformer": costs.of_graph(bundle.graph("qformer"), features, batch * spec.prefix_length, batch),
        "prefill": prefill,
        "decode step": costs.of_graph(llm, {"inputs_embeds": rows}, rows, rows),
    }


def _rates(stages: dict[str, Any], work: Work) -> dict[str, float | None]:
    step = stages.get("decode step")
    return {
        "tokens_per_second": None if step is None else work.batch / step["median"],
        "captions_per_second": work.batch / stages["caption"]["median"],
        "time_to_first_token": stages["first token"]["median"],
    }


def absent(name: str) -> str | None:
    """Why a peer cannot be measured, and the command that mends it; None: it is installed."""
    missing = peers.missing(name)
    return f"{', '.join(missing)} is not installed: {peers.PEERS[name].install}" if missing else None


def _peer(plan: Plan, name: str) -> dict[str, Any]:
    if reason := absent(name):
        return {"error": reason}
    _say(f"{name}: {peers.PEERS[name].about}")
    given = {**asdict(plan.work), "name": name, "config": plan.config}
    try:
        return worker.run_json(name, f"{peers.__name__}.{peers.PEERS[name].module}", given)
    except Blip2rtError as error:
        return {"error": str(error)}


def _scaling(plan: Plan) -> Iterator[dict[str, Any]]:
    """Batches and callers, for one thread and for two where the machine has them."""
    for threads in sorted({1, min(2, machine.cores())}):
        base = replace(plan.work, threads=threads, repeat=min(plan.work.repeat, SCALING_RUNS), batch=1)
        for kind, sizes in (("batch", BATCHES), ("callers", CALLERS)):
            for size in sizes:
                _say(f"{kind} {size}, {threads} thread{'s' * (threads > 1)}")
                changed: dict[str, Any] = {kind: size}
                got = worker.work("throughput", asdict(replace(base, **changed)))
                yield {"threads": threads, "kind": kind, "size": size, **got}
