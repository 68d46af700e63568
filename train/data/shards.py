"""Shards in the WebDataset format: .tar files of `key.jpg` with `key.txt` or `key.json`.

With a shard's index (shard_index.py) any sample is a single read, so the order of samples can be a function of the
step, and a resumed training reads only what it needs.
"""

import glob
import io
import json
import re
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from blip2rt.bundle.atomic import write_file
from blip2rt.errors import Blip2rtError, boundary
from blip2rt.modeling.sources import parse_json
from blip2rt.object_storage import Url, is_url

from .samples import BadSamples, Sample, text_fault
from .shard_index import RESTORE, TEXTS, Faults, Shard, ShardReader, digest, open_index, summarize

_MAX_WEIGHT = 1e9  # of a text
_MAX_OPEN = 64  # files per process
RECORD = "shards.json"  # in a training's folder


def expand_shards(pattern: str) -> list[Shard]:
    """Return the shards of `a/{0000..0099}.tar`, of `a/*.tar`, or of a folder. Raise Blip2rtError if there are none.

    `a` may be in object storage; the numbered shards of a pattern there are looked for when they are indexed.
    """
    remote = is_url(pattern)
    if not remote and Path(pattern).is_dir():
        pattern = str(Path(pattern) / "*.tar")
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces:
        first, last = braces.groups()
        names = [
            f"{pattern[: braces.start()]}{number:0{len(first)}}{pattern[braces.end() :]}"
            for number in range(int(first), int(last) + 1)
        ]
        missing = [] if remote else [name for name in names if not Path(name).is_file()]
        if missing:
            raise Blip2rtError(
                f"{len(missing)} of {len(names)} shards of {pattern!r} are missing: download them, as {missing[0]}"
            )
        if remote:
            return list(map(Url.parse, names))
    elif remote:
        if found := list[Shard](url for url, _ in Url.parse(pattern).objects() if url.name.endswith(".tar")):
            return found
        names = []
    else:
        names = sorted(glob.glob(pattern))
    if not names:
        raise Blip2rtError(f"there are no shards {pattern!r}: write some with `blip2rt-train prepare shards`")
    return [Path(name) for name in names]


def check_shards(sources: Sequence[object], out: Path, began: bool) -> None:
    """Record the shards in `out`; raise Blip2rtError, which names the differences, if a started training had others.

    The samples of a step depend on all shards.
    """
    each = [source for source in sources if isinstance(source, Shards)]
    now = {str(p): [n, d] for s in each for p, n, d in zip(s.paths, s.counts, s.digests, strict=True)}
    record = out / RECORD
    if began and record.is_file():
        with boundary(f"{record} is damaged, remove it to continue with the shards as they are"):
            before = dict(parse_json(record.read_bytes()))
        found = [f"{name} is gone" for name in before if name not in now]
        found += [f"{name} has changed" for name in before if name in now and before[name] != now[name]]
        found += [f"{name} is new" for name in now if name not in before]
        if found:
            more = f", and {len(found) - 5} more" if len(found) > 5 else ""
            raise Blip2rtError(
                f"shards differ from those with which the training in {out} began: {', '.join(found[:5])}{more}: "
                f"{RESTORE}, or give another folder as out"
            )
    elif now:
        write_file(record, json.dumps(now, indent=1).encode())


def add_sample(shard: tarfile.TarFile, name: str, source: str, content: bytes, texts: Sequence[Sample]) -> None:
    """Write an image under its name and its texts beside it. source: where the image came from."""
    captions = [{"text": t.text, "prompt": t.prompt, "weight": t.weight} if t.prompt else t.text for t in texts]
    metadata = json.dumps({"captions": captions, "source": source}).encode()
    for member, data in ((name, content), (str(PurePosixPath(name).with_suffix(".json")), metadata)):
        info = tarfile.TarInfo(member)
        info.size = len(data)
        shard.addfile(info, io.BytesIO(data))


class Shards:
    """The samples of many shards, by number."""

    def __init__(self, pattern: str, cache: Path, bad: BadSamples | None = None) -> None:
        """bad: counts incomplete samples."""
        self.paths, self.cache, self.counts = expand_shards(pattern), cache, []
        self.digests: list[str] = []
        for summary in summarize(self.paths, cache):
            self.counts.append(summary.count)
            self.digests.append(summary.digest)
            for name, fault in summary.faults if bad is not None else ():
                assert bad is not None
                bad.add(name, fault)
        self._ends = np.cumsum(self.counts)
        self._open: OrderedDict[int, tuple[ShardReader, np.ndarray]] = OrderedDict()
        if not sum(self.counts):
            raise Blip2rtError(f"the shards {pattern!r} hold no image with a .txt or .json: give others")

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}  # each worker opens its own files

    def name(self, number: int) -> str:
        shard, row = self._place(number)
        return f"{self.paths[shard]}#{row}"

    def read(self, number: int, faults: Faults | None = None) -> tuple[bytes, list[Sample]]:
        """Return the image file and its texts. Raise ValueError or OSError for a damaged sample.

        faults: receives names and reasons of texts that were left out of a sample that has others.
        """
        shard, row = self._place(number)
        reader, index = self._shard(shard)
        wrong: list[str] = []
        content, texts, _ = read_row(reader, index[row], wrong)
        if faults is not None:
            faults += [(f"{self.name(number)}, {fault}", "left out") for fault in wrong]
        return content, texts

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, number, "right"))
        return shard, int(number - (self._ends[shard] - self.counts[shard]))

    def _shard(self, shard: int) -> tuple[ShardReader, np.ndarray]:
        if shard not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self._open.popitem(last=False)[1][0].close()
            path = self.paths[shard]
            try:
                reader, index = ShardReader(path), open_index(path, self.cache)
            except OSError as error:
                raise Blip2rtError(f"shard {path} is gone ({error.strerror}): {RESTORE}") from error
            if digest(index) != self.digests[shard]:
                reader.close()
                raise Blip2rtError(f"shard {path} has changed since the training began: {RESTORE}")
            self._open[shard] = reader, index.rows
        self._open.move_to_end(shard)
        return self._open[shard]


def read_row(reader: ShardReader, row: np.ndarray, faults: list[str]) -> tuple[bytes, list[Sample], str]:
    """Return the image file of an index's row, its texts, and the contents of the text file they are from.

    faults: receives what is wrong with texts that are left out. Raise ValueError or OSError for a damaged sample.
    """
    offset, size, *places = (int(value) for value in row)
    wrong, texts, content = list[str](), list[Sample](), ""
    for ending, start, length in zip(TEXTS, places[::2], places[1::2], strict=True):
        if length and not texts:
            content = reader.read(length, start).decode("utf-8", "surrogateescape")
            try:
                texts = parse_texts(content, json_=ending == ".json", faults=wrong)
            except ValueError as error:
                wrong.append(f"its {ending}: {error}")
    if not texts:
        raise ValueError("; ".join(wrong) or "it has no caption")
    faults += wrong
    return reader.read(size, offset), texts, content


def parse_texts(content: str, json_: bool, faults: list[str] | None = None) -> list[Sample]:
    """Return the texts of a sample: every line of a .txt; of a .json `captions` (strings, or prompt and text), or
    `caption`.

    faults: receives what is wrong with texts that are left out. Raise ValueError if none is left.
    """
    if not json_:
        entries: Any = [line.strip() for line in content.splitlines() if line.strip()]
    else:
        data = parse_json(content)
        if not isinstance(data, dict):
            raise ValueError("it is not an object")
        entries = data.get("captions") or data.get("caption")
        entries = entries if isinstance(entries, list) else [] if entries is None else [entries]
    found, wrong = [], []
    for number, each in enumerate(entries, 1):
        text, prompt, weight = _entry(each)
        fault = text_fault(text, "answer" if prompt else "caption")
        if prompt and not fault:
            fault = text_fault(prompt, "prompt")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= _MAX_WEIGHT:
            fault = f"its weight is {str(weight)[:40]!r}, not a number above 0"
        if fault is None:
            found.append(Sample(0, str(text), str(prompt or ""), float(weight)))
        else:
            wrong.append(f"text {number}: {fault}")
    if not found:
        raise ValueError("; ".join(wrong[:3]) or "it has no caption")
    if faults is not None:
        faults += wrong
    return found


def _entry(each: Any) -> tuple[Any, Any, Any]:
    """Return text, prompt and weight of an entry: a string, or an object."""
    if not isinstance(each, dict):
        return each, "", 1
    text = next((each[name] for name in ("text", "caption", "answer", "raw") if name in each), None)
    return text, each.get("prompt", each.get("question", "")), each.get("weight", 1)
