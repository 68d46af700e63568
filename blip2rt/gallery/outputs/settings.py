"""Where the results of `caption` and `tag` go."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ...errors import OptionError
from ..flags import XMP_NAMES
from ..sources import Sources
from .tables import TABLES


@dataclass(frozen=True)
class OutputSettings:
    """Where captions go; standard output if nothing is set."""

    sidecar: str | None = None  # extension of a file next to each picture
    xmp: str | None = None  # name of the sidecar of photo.jpg
    out: str | None = None
    overwrite: bool = False
    json: bool = False  # print JSON objects
    errors: str | None = None  # file that lists failures
    strict: bool = False  # stop at the first failure

    @property
    def into_shards(self) -> bool:
        """Whether `out` is a folder for copies of shards: it does not have the extension of a table."""
        return self.out is not None and os.path.splitext(self.out)[1].lower() not in TABLES

    @property
    def printed(self) -> bool:
        return self.sidecar is None and self.out is None and self.xmp is None


def check_outputs(outputs: OutputSettings, sources: Sources) -> None:
    """Raise OptionError for conflicting outputs."""
    files = [("--out", outputs.out), ("--errors", outputs.errors), *(("--from-file", name) for name in sources.lists)]
    known: dict[str, str] = {}
    for flag, name in files:
        if name is None or (os.path.exists(name) and not os.path.isfile(name)):
            continue
        first = known.setdefault(os.path.realpath(name), flag)
        if first != flag:
            raise OptionError(f"{first} and {flag} are the same file, {name!r}: give another one")
    if outputs.overwrite and outputs.printed:
        raise OptionError("overwrite is given, but nothing is written: give --write, --xmp or --out")
    if outputs.json and not outputs.printed:
        raise OptionError("--json prints captions, but they go to files: give --out FILE.jsonl")
    if outputs.into_shards and not any(path.endswith(".tar") for path in sources.paths):
        raise OptionError(f"out is {outputs.out!r}: give a file that ends with {', '.join(TABLES)}")
    if outputs.xmp and outputs.into_shards:
        raise OptionError(f"--xmp writes next to pictures, but --out {outputs.out!r} copies shards: leave out --xmp")
    if outputs.xmp == XMP_NAMES[0] and (outputs.sidecar or "").lower().lstrip(".") == "xmp":
        raise OptionError("--xmp and --caption-extension '.xmp' would write the same file: leave out one of them")
