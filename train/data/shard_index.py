"""The indices of shards: where each sample's files are, built once and kept beside the shard.

A training starts from one file of summaries, and loads an index when it first reads from its shard.
"""

import hashlib
import io
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from blip2rt.bundle.atomic import write_file
from blip2rt.errors import Blip2rtError, reason
from blip2rt.modeling.sources import parse_json
from blip2rt.object_storage import Url
from blip2rt.system import read_range
from blip2rt.untrusted.tar_headers import is_plain, tar_headers

from ..loop.signals import ignore_parent_signals
from ..progress import bar
from .readers import IMAGES

TEXTS = (".json", ".txt")  # the first with a text counts
Faults = list[tuple[str, str]]  # names and reasons
SUMMARIES = "shards.index.json"  # beside the shards
_MANY = 8  # shards without an index for which several processes are worth their start
RESTORE = "restore it, and the same command resumes"
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # missing or incomplete
Shard = Path | Url


class ShardReader:
    """An open shard, of which ranges are read. Raises OSError."""

    def __init__(self, shard: Shard) -> None:
        if isinstance(shard, Url):
            file = shard.open()
            self._read, self.close = file.read_at, file.close
        else:
            descriptor = os.open(shard, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._read, self.close = partial(read_range, descriptor), partial(os.close, descriptor)

    def read(self, size: int, offset: int) -> bytes:
        """Return a range. Raise ValueError if the shard ends within it."""
        content = bytes(self._read(size, offset))
        if len(content) != size:
            raise ValueError("the shard ends within it")
        return content


@dataclass(frozen=True)
class Index:
    """The samples of a shard, and its faults.

    rows (samples, 6) int64: offset and size of the image, of its .json and of its .txt, 0 and 0 for a missing file;
    faults: names and reasons.
    """

    rows: np.ndarray
    faults: list[tuple[str, str]]


@dataclass(frozen=True)
class Summary:
    """What a training knows of a shard from the start. size, written: of the file; digest: of the index."""

    size: int
    written: int
    count: int
    digest: str
    faults: Faults


def open_index(shard: Shard, cache: Path) -> Index:
    """Load a shard's index from beside the shard, or build it. A truncated shard yields its complete samples.

    cache: folder of the indices if the shard's folder is read-only.
    """
    size, written = shard_version(shard)
    name = hashlib.sha256(f"{_key(shard)} {size} {written}".encode()).hexdigest()[:20]
    file = _index_folder(shard, cache) / f"{Path(shard.name).stem}-{name}.index.npz"
    with suppress(*_DAMAGED):
        return _load_index(file.read_bytes())
    index, _names = scan_samples(shard)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{os.getpid()}-{file.name}")
    unfinished.write_bytes(_dump_index(index))
    unfinished.rename(file)
    return index


def _load_index(content: bytes) -> Index:
    with np.load(io.BytesIO(content)) as loaded:
        return Index(loaded["rows"], [tuple(fault) for fault in json.loads(str(loaded["faults"]))])


def _dump_index(index: Index) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, rows=index.rows, faults=np.array(json.dumps(index.faults)))
    return stream.getvalue()


def _index_folder(shard: Shard, cache: Path) -> Path:
    if isinstance(shard, Url):
        return cache
    return shard.parent if os.access(shard.parent, os.W_OK) else cache


def summarize(shards: Sequence[Shard], cache: Path, processes: int | None = None) -> list[Summary]:
    """Return the summaries of shards, from one file beside them; build missing indices in several processes.

    processes: by default as many as there are processors.
    """
    known = {folder: _read_summaries(folder) for folder in {_index_folder(shard, cache) for shard in shards}}
    found: dict[Shard, Summary] = {}
    for shard, version in zip(shards, _versions(shards), strict=True):
        summary = known[_index_folder(shard, cache)].get(_key(shard))
        if summary is not None and (summary.size, summary.written) == version:
            found[shard] = summary
    missing = [shard for shard in shards if shard not in found]
    workers = min(processes or os.cpu_count() or 1, len(missing))
    if workers > 1 and len(missing) >= _MANY:
        with ProcessPoolExecutor(workers, initializer=ignore_parent_signals) as pool:
            found_now = pool.map(partial(_summarize, cache=cache), missing)
            made = list(bar(found_now, total=len(missing), desc="indices"))
    else:
        made = [_summarize(shard, cache) for shard in missing]
    found |= zip(missing, made, strict=True)
    for folder in {_index_folder(shard, cache) for shard in missing}:
        names = {_key(s): vars(found[s]) for s in found if _index_folder(s, cache) == folder}
        others = {name: vars(summary) for name, summary in _read_summaries(folder).items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / SUMMARIES, json.dumps(others | names).encode())
    return [found[shard] for shard in shards]


def shard_version(shard: Shard) -> tuple[int, int]:
    """The size of a shard and its time (ns)."""
    if isinstance(shard, Url):
        return shard.stamp()
    status = shard.stat()
    return status.st_size, status.st_mtime_ns


def _versions(shards: Sequence[Shard]) -> list[tuple[int, int]]:
    """The versions of shards. Requests overlap."""
    try:
        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(shard_version, shards))
    except FileNotFoundError as error:
        raise Blip2rtError(f"a shard is missing: {error.filename or error}: {RESTORE}") from None
    except OSError as error:
        raise Blip2rtError(f"the shards cannot be read: {reason(error)}; check the URL and its credentials") from None


def _key(shard: Shard) -> str:
    """The name of a shard in its folder's summaries."""
    return str(shard) if isinstance(shard, Url) else shard.name


def _summarize(shard: Shard, cache: Path) -> Summary:
    (size, written), index = shard_version(shard), open_index(shard, cache)
    return Summary(size, written, len(index.rows), digest(index), index.faults)


def _read_summaries(folder: Path) -> dict[str, Summary]:
    try:
        found = parse_json((folder / SUMMARIES).read_bytes())
        return {name: Summary(**{**each, "faults": [tuple(f) for f in each["faults"]]}) for name, each in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing or damaged
        return {}


def scan_samples(shard: Shard) -> tuple[Index, list[str]]:
    """Return a shard's index, and the name of each row's image: folder, key and extension."""
    found: OrderedDict[str, dict[str, tuple[int, int]]] = OrderedDict()
    cut, size = {}, shard_version(shard)[0]
    try:
        for member, _, _ in tar_headers(shard):
            folder, _, name = member.name.rpartition("/")
            key, dot, ending = name.partition(".")
            if not is_plain(member) or not dot:
                continue
            if member.offset_data + member.size > size:
                cut[f"{folder}/{key}"] = f"the shard ends within its .{ending}"
            else:
                found.setdefault(f"{folder}/{key}", {})[f".{ending.lower()}"] = (member.offset_data, member.size)
    except OSError as error:
        if not found:
            text = f"shard {shard} is not a .tar file ({error.strerror}): remove it or download it again"
            raise Blip2rtError(text) from error
        cut["(the rest)"] = f"the shard is damaged: {error.strerror}"
    rows, names, faults = [], [], [(f"{shard}#{key.lstrip('/')}", reason) for key, reason in cut.items()]
    for key, files in found.items():
        ending = next((ending for ending in files if ending in IMAGES), "")
        image = files.get(ending)
        texts = [files.get(ending, (0, 0)) for ending in TEXTS]
        if image is not None and any(ending in files for ending in TEXTS):
            rows.append([*image, *texts[0], *texts[1]])
            names.append(f"{key.lstrip('/')}{ending}")
        elif key not in cut and (image is not None or any(ending in files for ending in TEXTS)):
            lacks = "an image" if image is None else " or ".join(TEXTS)
            faults.append((f"{shard}#{key.lstrip('/')}", f"it lacks {lacks}"))
    return Index(np.array(rows, np.int64).reshape(-1, 6), faults), names


def digest(index: Index) -> str:
    """Return a digest of a shard's samples and their positions."""
    return hashlib.sha256(np.ascontiguousarray(index.rows).tobytes()).hexdigest()[:20]
