"""Export and convert in this process."""

from pathlib import Path

from blip2rt_export import cli
from blip2rt_export import convert as convert_command

FLOAT = "vision=fp32,qformer=fp32,llm=fp32,retrieval=fp32"


def export(checkpoint: Path, out: Path, *arguments: object, precision: str = FLOAT) -> Path:
    """Export a checkpoint; return the bundle."""
    words = ["--checkpoint", checkpoint, "--out", out, "--precision", precision, *arguments]
    assert cli.main(list(map(str, words))) == 0
    return out


def convert(source: Path, out: Path, *arguments: object, status: int = 0) -> Path:
    """Convert a checkpoint or a bundle, with this exit status; return the output."""
    assert convert_command.main(list(map(str, [source, "--out", out, *arguments]))) == status
    return out
