"""JSON of a stranger's checkpoint, and bounds of its numbers. Knows files, no models. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 256 << 20  # of a file: the largest tokenizers have 33 MB, the largest indices 1
# Far above every model that there is: whoever counts to more does not come to an end.
MOST, MOST_LAYERS = 2**31, 1000


def read_json(file: Path) -> Any:
    """What a file says. Raise OSError; ValueError for what is no JSON, too long, or nested too deep."""
    size = file.stat().st_size
    if not file.is_file():
        raise ValueError("it is no file")
    if size > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, and {MOST_BYTES:,} are allowed")
    return parse_json(file.read_bytes())


def parse_json(text: bytes) -> Any:
    """What a text says. Raise ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def require_bounds(values: Mapping[Any, Any]) -> None:
    """Raise ValueError: a number of a config, or of a group in it, is larger than any model's."""
    faults = list(_large(values, ""))
    if faults:
        raise ValueError("; ".join(faults[:5]))


def _large(values: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    for name, value in values.items():
        most = MOST_LAYERS if str(name).endswith("layers") else MOST
        if isinstance(value, Mapping):
            yield from _large(value, f"{prefix}{name}.")
        elif isinstance(value, int) and abs(value) > most:
            yield f"{prefix}{name} is {value:,}, more than {most:,}"
