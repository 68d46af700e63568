"""Plots of the result: stages with their limits, peers, and captions a second and memory by load."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..bundle.atomic import write_file
from ..errors import Blip2rtError
from ..install_hints import pip_install
from .report import LABELS


def save(result: dict[str, Any], path: Path) -> None:
    """Write the plots. Raises Blip2rtError if matplotlib is missing or the file cannot be written."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise Blip2rtError(f"--plot needs matplotlib: {pip_install('bench')}") from error
    peers = any("stages" in peer for peer in result["peers"].values())
    speed = partial(_scaling, key="captions_per_second", unit=1, label="captions a second")
    memory = partial(_scaling, key="peak_rss", unit=1e6, label="peak resident memory, MB")
    parts: list[Callable[..., None]] = [_stages, *([_peers] * peers), *([speed, memory] * bool(result["scaling"]))]
    figure, axes = plt.subplots(len(parts), 1, figsize=(9, 3.4 * len(parts)), squeeze=False, layout="constrained")
    for part, axis in zip(parts, axes[:, 0], strict=True):
        part(result, axis)
    machine, work = result["machine"], result["work"]
    figure.suptitle(f"{result['bundle']['name']} on {machine['processor']}, {work['threads']} threads", fontsize=10)
    try:
        drawn = io.BytesIO()
        figure.savefig(drawn, format=path.suffix[1:], dpi=120)
        write_file(path, drawn.getbuffer())
    except (OSError, ValueError) as error:
        raise Blip2rtError(f"--plot {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        plt.close(figure)


def _stages(result: dict[str, Any], axis: Any) -> None:
    """Bars of the medians with p10 and p90, and a mark at the limit."""
    stages = result["stages"]
    names = list(stages)[::-1]
    middle = [1000 * stages[name]["median"] for name in names]
    spread = [[1000 * abs(stages[n][end] - stages[n]["median"]) for n in names] for end in ("p10", "p90")]
    axis.barh(range(len(names)), middle, xerr=spread, color="tab:blue")
    for y, name in enumerate(names):
        if "limit" in stages[name]:
            axis.plot([1000 * stages[name]["limit"]] * 2, [y - 0.4, y + 0.4], color="black", linewidth=2)
    axis.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axis.set(xscale="log", xlabel="ms; the black mark is the machine's limit")


def _peers(result: dict[str, Any], axis: Any) -> None:
    """Bars of each peer's time as a multiple of ours."""
    peers = {name: peer["stages"] for name, peer in result["peers"].items() if "stages" in peer}
    order = ("vision", "prefill", "decode step", "caption")
    names = [name for name in order if any(name in stages for stages in peers.values())]
    width = 0.8 / len(peers)
    for i, (peer, stages) in enumerate(peers.items()):
        at = [x + i * width for x, name in enumerate(names) if name in stages]
        ratios = [stages[name]["median"] / result["stages"][name]["median"] for name in names if name in stages]
        bars = axis.bar(at, ratios, width, label=peer)
        axis.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], fontsize=8)
    axis.axhline(1, color="black", linewidth=1)
    axis.set_xticks([x + 0.4 - width / 2 for x in range(len(names))], [LABELS[name] for name in names])
    axis.set_ylabel("times blip2rt's time")
    axis.legend(fontsize=8)


def _scaling(result: dict[str, Any], axis: Any, key: str, unit: float, label: str) -> None:
    points = result["scaling"]
    for kind, threads in sorted({(point["kind"], point["threads"]) for point in points}):
        own = [point for point in points if (point["kind"], point["threads"]) == (kind, threads)]
        values = [point[key] / unit for point in own]
        line = f"{kind}, {threads} thread{'s' * (threads > 1)}"
        axis.plot([point["size"] for point in own], values, "o-", label=line)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="images in a batch, or callers", ylabel=label, ylim=(0, None))
    axis.legend(fontsize=8)
