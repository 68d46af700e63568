"""Run the exporter's commands in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import cli

FLOAT = "vision=fp32,qformer=fp32,llm=fp32,retrieval=fp32"


def export(checkpoint: Path, out: Path, *arguments: object, precision: str = FLOAT) -> Path:
    """Export a checkpoint; return the bundle."""
    words = ["--checkpoint", checkpoint, "--out", out, "--precision", precision, *arguments]
    assert cli.main(list(map(str, words))) == 0
    return out


def error_line(
    capture: pytest.CaptureFixture[str], arguments: list[Any], main: Callable[[list[str]], int] = cli.main
) -> str:
    """Run a command that fails with status 2; return its only line of errors."""
    capture.readouterr()
    assert main(list(map(str, arguments))) == 2
    output = capture.readouterr().err
    [line] = [line for line in output.splitlines() if not line.startswith("[")]
    assert line.startswith("blip2rt-") and ": error: " in line and line.isprintable()
    return line
