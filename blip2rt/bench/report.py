"""The result as tables in plain columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

LABELS = {
    "image": "image: decode, preprocess",
    "vision": "vision encoder",
    "qformer": "Q-Former",
    "prefill": "prefill",
    "decode step": "decode step",
    "detokenize": "detokenize",
    "first token": "image to first token",
    "caption": "whole caption",
}


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def heading(result: dict[str, Any]) -> list[str]:
    """Return a few lines about the machine and the work."""
    machine, work, bundle = (result[key] for key in ("machine", "work", "bundle"))
    memory = f", {machine['memory_bytes'] / 1e9:.0f} GB" if machine["memory_bytes"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    precisions = ", ".join(f"{name} {precision}" for name, precision in bundle["precisions"].items())
    return [
        f"{machine['processor']} ({machine['architecture']}), {machine['cores']} cores{memory}",
        f"{work['threads']} threads, batch {work['batch']}, {work['beams']} beam{'s' * (work['beams'] > 1)}, "
        f"{work['new_tokens']} new tokens",
        f"{versions}; {machine['system']}; {result['date']}",
        f"kernels: {', '.join(machine['kernels'])}",
        f"{bundle['name']}, {bundle['bytes'] / 1e6:.1f} MB: {precisions}",
    ]


def tables(result: dict[str, Any]) -> list[Table]:
    found = [_stages(result), _start(result)]
    if result["peers"]:
        found.append(_peers(result))
    if result["growth"]:
        found.extend(_growth(result["growth"]))
    return found


def _stages(result: dict[str, Any]) -> Table:
    rows = []
    for name, stage in result["stages"].items():
        limit = (_ms(stage["limit"]), f"{stage['of_limit']:.2f} x") if "limit" in stage else ("", "")
        rows.append((LABELS[name], _ms(stage["median"]), _ms(stage["p10"]), _ms(stage["p90"]), *limit))
    head = ("stage", "median ms", "p10", "p90", "linear read ms", "of the read")
    return Table("Stages", head, tuple(rows))


def _start(result: dict[str, Any]) -> Table:
    start, rates, size = result["start"], result["rates"], result["bundle"]["bytes"]
    ratio = start["peak_rss"] / size
    rows = [("size on disk", f"{size / 1e6:.1f} MB")]
    for kind, label in (("cold", "load, nothing cached"), ("warm", "load, files cached")):
        if start[kind]:
            rows.append((label, f"{_ms(start[kind]['load'])} ms"))
            rows.append(("first caption after it", f"{_ms(start[kind]['first_caption'])} ms"))
    rows.append(("peak resident memory of a caption", f"{start['peak_rss'] / 1e6:.1f} MB, {ratio:.2f} x bundle"))
    if rates["tokens_per_second"]:
        rows.append(("tokens a second", f"{rates['tokens_per_second']:.2f}"))
    rows.append(("captions a second", f"{rates['captions_per_second']:.3f}"))
    rows.append(("time to first token", f"{_ms(rates['time_to_first_token'])} ms"))
    return Table("Start, memory, rates", ("", ""), tuple(rows))


def _peers(result: dict[str, Any]) -> Table:
    """The times of peers, each also as a multiple of ours."""
    ours = result["stages"]
    names = [name for name in ("vision", "qformer", "prefill", "decode step", "first token", "caption") if name in ours]
    own = [_ms(ours[name]["median"]) for name in names]
    rows = [("blip2rt", *own, f"{result['start']['peak_rss'] / 1e6:.0f} MB")]
    for peer, got in result["peers"].items():
        if "error" in got:
            rows.append((peer, got["error"], *[""] * len(names)))
            continue
        cells = [_ratio(got["stages"].get(name), ours[name]) for name in names]
        rows.append((peer, *cells, f"{got['peak_rss'] / 1e6:.0f} MB"))
    return Table("Peers: ms (times ours)", ("", *(LABELS[name] for name in names), "peak memory"), tuple(rows))


def _ratio(theirs: dict[str, float] | None, ours: dict[str, float]) -> str:
    if theirs is None:
        return ""
    return f"{_ms(theirs['median'])} ({theirs.get('times_ours', theirs['median'] / ours['median']):.2f} x)"


def _growth(growth: dict[str, Any]) -> list[Table]:
    """A table for each curve: a row for each number of threads, with each time also as a multiple of the first."""
    found = []
    for curve, points in next(iter(growth.values())).items():
        rows = []
        for threads, curves in growth.items():
            first, *others = curves[curve].values()
            cells = (f"{_ms(seconds)} ({seconds / first:.2f} x)" for seconds in others)
            rows.append((threads, _ms(first), *cells))
        found.append(Table(f"Growth of a {curve}: ms (times the first)", ("threads", *map(str, points)), tuple(rows)))
    return found


def _ms(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def show(result: dict[str, Any], out: TextIO) -> None:
    """Print the heading and all tables."""
    print("\n".join(heading(result)), file=out)
    draw(tables(result), out)


def draw(found: Sequence[Table], out: TextIO) -> None:
    """Print tables in aligned columns."""
    for table in found:
        rows: Sequence[tuple[str, ...]] = (table.head, *table.rows) if any(table.head) else table.rows
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        print("", table.title, *(line.rstrip() for line in lines), sep="\n", file=out)
