"""Command-line arguments and configs of tests, in short form."""

from typing import Any


def options(**fields: Any) -> list[str]:
    """`options(lr=1, out=folder)` -> ["--lr", "1", "--out", "folder"]."""
    return [text for name, value in fields.items() for text in (f"--{name}", str(value))]


def sizes(text: str) -> dict[str, Any]:
    """`sizes("layers=2 width=16")` -> {"layers": 2, "width": 16}."""
    return {name: int(value) for name, value in (pair.split("=") for pair in text.split())}


def without(arguments: list[str], *names: str) -> list[str]:
    """Drop options and their values."""
    dropped = {at for name in names for at in (arguments.index(name), arguments.index(name) + 1)}
    return [text for at, text in enumerate(arguments) if at not in dropped]
