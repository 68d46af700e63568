"""Shards in the WebDataset format: .tar files of `key.jpg` with `key.txt` or `key.json` beside it.

A shard's index (where each file is in it) is made once and kept; after that any sample is one read, so that the order
of samples can be a function of the step, and a resumed training reads nothing that it does not need. Shards lie on a
disk or a network file system. Knows files, nothing about pixels or models.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from blip2rt.errors import Blip2rtError

from .readers import IMAGES
from .samples import Sample

_TEXTS = (".txt", ".json")
_OPEN = 64  # files held open in one process


def expand(pattern: str) -> list[Path]:
    """The shards of `a/{0000..0099}.tar`, of `a/*.tar`, or of a folder. Raise Blip2rtError where there are none."""
    if Path(pattern).is_dir():
        pattern = str(Path(pattern) / "*.tar")
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces:
        first, last = braces.groups()
        names = [
            f"{pattern[: braces.start()]}{number:0{len(first)}}{pattern[braces.end() :]}"
            for number in range(int(first), int(last) + 1)
        ]
        missing = [name for name in names if not Path(name).is_file()]
        if missing:
            raise Blip2rtError(
                f"{len(missing)} of {len(names)} shards of {pattern!r} are missing: download them, as {missing[0]}"
            )
    else:
        names = sorted(glob.glob(pattern))
    if not names:
        raise Blip2rtError(f"there are no shards {pattern!r}: make some by `python -m train.prepare shards`")
    return [Path(name) for name in names]


def index_of(shard: Path, cache: Path) -> np.ndarray:
    """(samples, 4) int64: offset and size of the image, offset and size of its text (size negative: of its .json).

    Read it from `cache`, or make it there. A shard that ends too early gives its whole samples.
    """
    status = shard.stat()
    name = hashlib.sha256(f"{shard.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:20]
    kept = cache / f"{shard.stem}-{name}.index.npy"
    if kept.is_file():
        loaded: np.ndarray = np.load(kept)
        return loaded
    index = _scan(shard)
    cache.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f".{os.getpid()}-{kept.name}")
    with partial.open("wb") as file:
        np.save(file, index)
    partial.rename(kept)
    return index


def _scan(shard: Path) -> np.ndarray:
    found: OrderedDict[str, dict[str, tuple[int, int]]] = OrderedDict()
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, dot, ending = name.partition(".")
                if member.isfile() and dot and member.offset_data + member.size <= size:
                    found.setdefault(f"{folder}/{key}", {})[f".{ending.lower()}"] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        if not found:
            raise Blip2rtError(f"shard {shard} is no .tar file ({error}): remove it or download it again") from error
    rows = []
    for files in found.values():
        image = next((place for ending, place in files.items() if ending in IMAGES), None)
        text = next(((ending, files[ending]) for ending in reversed(_TEXTS) if ending in files), None)
        if image is not None and text is not None:
            (ending, (offset, length)) = text
            rows.append((*image, offset, -length if ending == ".json" else length))
    return np.array(rows, np.int64).reshape(-1, 4)


class Shards:
    """Samples of many shards by number."""

    def __init__(self, pattern: str, cache: Path) -> None:
        self.paths, self.cache = expand(pattern), cache
        self.counts = [len(index_of(path, cache)) for path in self.paths]
        self._ends = np.cumsum(self.counts)
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()
        if not sum(self.counts):
            raise Blip2rtError(f"the shards {pattern!r} hold no image with a .txt or .json beside it: give others")

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}  # a loader's worker opens its own files

    def name(self, number: int) -> str:
        shard, row = self._place(number)
        return f"{self.paths[shard]}#{row}"

    def read(self, number: int) -> tuple[bytes, list[Sample]]:
        """The image file and its texts. Raise ValueError or OSError for a sample that is damaged."""
        shard, row = self._place(number)
        descriptor, index = self._shard(shard)
        offset, size, text_offset, text_size = (int(value) for value in index[row])
        text = os.pread(descriptor, abs(text_size), text_offset).decode("utf-8", "replace")
        return os.pread(descriptor, size, offset), texts_of(text, json_=text_size < 0)

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, number, "right"))
        return shard, int(number - (self._ends[shard] - self.counts[shard]))

    def _shard(self, shard: int) -> tuple[int, np.ndarray]:
        if shard not in self._open:
            if len(self._open) >= _OPEN:
                os.close(self._open.popitem(last=False)[1][0])
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY), index_of(self.paths[shard], self.cache)
        self._open.move_to_end(shard)
        return self._open[shard]


def texts_of(content: str, json_: bool) -> list[Sample]:
    """Texts of a sample: every line of a .txt; of a .json `captions` (strings, or prompt and text), or `caption`.

    Raises ValueError where there are none.
    """
    if not json_:
        found = [Sample(0, line.strip()) for line in content.splitlines() if line.strip()]
    else:
        data = json.loads(content)
        if not isinstance(data, dict):
            raise ValueError("its .json is no object")
        given = data.get("captions") or [data.get("caption")]
        found = [
            Sample(0, str(text["text"]), str(text.get("prompt", "")), float(text.get("weight", 1)))
            if isinstance(text, dict)
            else Sample(0, str(text))
            for text in given
            if text
        ]
    if not found:
        raise ValueError("it has no caption")
    return found
