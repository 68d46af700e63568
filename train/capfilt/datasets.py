"""CapFilt over lists and shards: candidates are stored beside the output, from which the best captions are chosen.

Processes share a data set by claiming one shard at a time; the system releases the claim of a process that dies.
"""

import contextlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.sources import parse_json
from blip2rt.object_storage import Url, checkout, copies_folder, publish
from blip2rt.system import lock_file

from ..data.readers import IMAGES, read_data
from ..data.samples import BadSamples, Dataset, Sample, error_text, repeat_answers, table_text, text_fault
from ..data.shard_index import Shard, ShardReader, scan_samples, shard_version
from ..data.shards import add_sample, read_row
from ..evaluation.predictions import Predictions, require_writable, write_atomically
from ..progress import announce, bar
from .candidates import CapFilt, Item, choose, store_candidates

CANDIDATES = ".candidates.jsonl"  # end of the name of the file beside an output
_KEPT = ""  # key of the stored line that says how many captions the finished output keeps
_FIX = "restore the option, or give another --out"


@dataclass(frozen=True)
class FilterOptions:
    """How a data set is processed.

    open_capfilt: opens the models for a seed, once it is known that captions are missing; record: everything that the
    candidates depend on; keep: captions kept per image; batch: images per call.
    """

    open_capfilt: Callable[[int], CapFilt]
    record: dict[str, Any]
    keep: int
    batch: int
    bad: BadSamples


def read_images(data: str, images: str, bad: BadSamples) -> Dataset:
    """Read a list of images and texts, or every image of a folder, with or without a .txt beside it."""
    folder = Path(data)
    if not folder.is_dir():
        return read_data(data, images, bad)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not paths:
        raise Blip2rtError(f"--data {data!r} has no image: give another folder")
    samples = [
        Sample(image, line.strip())
        for image, texts in enumerate(path.with_suffix(".txt") for path in paths)
        if texts.is_file()
        for line in texts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if text_fault(line) is None
    ]
    return Dataset(paths, samples)


def filter_list(data: str, images: str, out: Path, options: FilterOptions) -> int:
    """Write the table `out` and return its number of images. `out`.candidates.jsonl holds all candidates."""
    require_writable(out)
    read = read_images(data, images, options.bad)
    root = Path(data) if Path(data).is_dir() else Path(images)
    items = [
        Item(str(path.relative_to(root)), str(path), path, texts)
        for path, texts in zip(read.paths, read.by_image(), strict=True)
    ]
    with claim(out) as mine:
        if not mine:
            raise Blip2rtError(f"{out} is being written by another process: wait until it ends, or give another --out")
        done = Predictions(Path(f"{out}{CANDIDATES}"), options.record, _FIX)
        if not all(item.key in done.found for item in items):
            with bar(total=len(items), unit="img", desc=out.name) as shown:
                store_candidates(items, options.open_capfilt(0), done, options.batch, options.bad, shown)
        kept = [(item.key, choose(done.found.get(item.key), item.texts, options.keep)) for item in items]
        if not any(samples for _, samples in kept):
            raise Blip2rtError(f"no image of {data!r} got a caption: give a captioner or a pool")
        rows = ((key, text.text, text.prompt) for key, samples in kept for text in repeat_answers(samples))
        write_atomically(out, table_text(rows))
    return sum(bool(samples) for _, samples in kept)


def filter_shards(shards: Sequence[Shard], out: Shard, options: FilterOptions) -> int:
    """Write a shard of the same name for each shard in the folder `out`; return how many images this process wrote.

    A shard that keeps as many captions is skipped. At the end, wait for the shards of other processes, and take over
    those of a process that died.
    """
    local, images = copies_folder(out) if isinstance(out, Url) else out, 0
    local.mkdir(parents=True, exist_ok=True)
    for wait in (False, True):
        left = []
        for shard in shards:
            final = out / shard.name
            if _is_finished(final, options.keep):
                continue
            with claim(local / shard.name, wait) as mine:
                if not mine:
                    left.append(shard)
                elif not _is_finished(final, options.keep):
                    copy = checkout(final, CANDIDATES)
                    images += _filter_shard(shard, copy, options)
                    publish(copy, final, CANDIDATES)
        if shards := left:
            announce(f"waiting for {len(left)} shards of other processes, the first {left[0].name}")
    return images


def _filter_shard(shard: Shard, final: Path, options: FilterOptions) -> int:
    done = Predictions(Path(f"{final}{CANDIDATES}"), options.record, _FIX)
    if _KEPT not in done.found:  # not all candidates are there
        index, _ = scan_samples(shard)
        for name, reason in index.faults:
            options.bad.add(name, reason)
        with bar(total=len(index.rows), unit="img", desc=shard.name) as shown:
            items = _read_items(shard, options.bad)
            store_candidates(
                items, options.open_capfilt(crc32(shard.name.encode())), done, options.batch, options.bad, shown
            )
    partial, images = final.with_name(f".{final.name}.partial"), 0
    with tarfile.open(partial, "w") as tar:
        for item in _read_items(shard, BadSamples(len(done.found) + 10**9)):
            if samples := choose(done.found.get(item.key), item.texts, options.keep):
                assert isinstance(item.image, bytes)
                add_sample(tar, item.key, done.found[item.key]["source"], item.image, samples)
                images += 1
    partial.rename(final)
    done.add([_KEPT], [options.keep])
    return images


def _read_items(shard: Shard, bad: BadSamples) -> Iterator[Item]:
    """Yield the samples of a shard under their names."""
    index, names = scan_samples(shard)
    with contextlib.closing(ShardReader(shard)) as reader:
        for row, name in zip(index.rows, names, strict=True):
            faults: list[str] = []
            try:
                content, texts, metadata = read_row(reader, row, faults)
            except (OSError, ValueError) as error:
                bad.add(f"{shard}#{name}", error_text(error))
                continue
            yield Item(name, _source(metadata) or f"{shard.name}#{name}", content, texts)


def _source(metadata: str) -> str:
    """Return a sample's source or URL; "" if its text file names none."""
    with contextlib.suppress(ValueError):
        found = parse_json(metadata)
        if isinstance(found, dict):
            return str(found.get("source") or found.get("url") or "")
    return ""


def _is_finished(final: Shard, keep: int) -> bool:
    """Whether a shard is written with `keep` captions per image: the last line of its candidates says so."""
    candidates = final.parent / f"{final.name}{CANDIDATES}"
    try:
        shard_version(final)
        start = max(0, (size := shard_version(candidates)[0]) - 100)
        with contextlib.closing(ShardReader(candidates)) as file:
            last = file.read(size - start, start).splitlines()[-1]
        return bool(json.loads(last) == {"id": _KEPT, "said": keep})
    except (OSError, ValueError, IndexError):
        return False


@contextlib.contextmanager
def claim(out: Path, wait: bool = False) -> Iterator[bool]:
    """Claim an output; yield whether it was free. wait: until it is free.

    The claim is a lock on a hidden file, which goes with the claim. File systems without locks are not protected.
    """
    lock = out.with_name(f".{out.name}.lock")
    while True:
        with lock.open("a") as file:
            if not lock_file(file, wait):
                yield False
                return
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    try:
                        yield True
                    finally:
                        with contextlib.suppress(OSError):  # Windows removes no open file
                            lock.unlink()
                    return
            # another process removed it when it finished
