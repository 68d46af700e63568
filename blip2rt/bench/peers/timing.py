"""Shared by the peers: measurements of a language model, and `main`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..stages import repeat, summary
from ..worker import print_result


def generation_stages(generate: Callable[[int], object], given: dict[str, Any]) -> dict[str, Any]:
    """Measure prefill and decode step. generate: produces this many tokens, the first by the prefill."""
    first = repeat(lambda: generate(1), given["repeat"])
    whole = repeat(lambda: generate(given["new_tokens"]), given["repeat"])
    return {"prefill": summary(first), **step_stage(first, whole, given["new_tokens"])}


def step_stage(first: Sequence[float], whole: Sequence[float], tokens: int) -> dict[str, Any]:
    """Return the stage of a decode step: the difference of a whole text and its first token."""
    if tokens < 2:
        return {}
    step = (summary(whole)["median"] - summary(first)["median"]) / (tokens - 1)
    return {"decode step": {"median": step, "p10": step, "p90": step, "runs": len(whole)}}


def main(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """Run a peer with the JSON of the command line and print its result as the last line."""
    given = json.loads(sys.argv[1])
    return print_result(lambda: measure(given), Exception)  # other engines raise anything; the run continues
