"""Captioned copies of WebDataset shards: `key.txt` is added to each sample, or replaces the existing one.

A copy grows sample by sample under a hidden name, and its content records the progress. It gets its final name when it
is complete. All other members, including folders and links, are copied byte for byte. The copy of a truncated shard
keeps its hidden name until a run finds the shard complete.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from pathlib import Path

from ...errors import OptionError
from ..output_files import AppendOnlyFile, check_writable, normalized_extension
from ..sources import Failure, Picture, Sources, is_shard, is_url
from ..tar_samples import BLOCK, TarMember, find_image, read_members, read_samples
from ..walk import expand
from . import Description


class CaptionedShard:
    """The copy of a shard with captions; a sink for the shard's pictures."""

    def __init__(self, path: str, target: Path, extension: str, overwrite: bool) -> None:
        """extension: of the texts. overwrite: replace an existing copy."""
        self.path, self._target = path, target
        self._extension = normalized_extension(extension)
        self._partial = target.with_name(f".{target.name}.partial")
        self._complete = target.exists() and not overwrite
        if self._complete:
            return
        self._samples: list[list[TarMember]] = []  # names and positions, not pixels
        self._truncated = False
        try:
            self._samples.extend(read_samples(path))
        except OSError:  # reported when the shard is walked
            self._truncated = True
            if not self._samples:
                self._complete = True  # there is nothing to write
                return
        self._file = AppendOnlyFile(str(self._partial), truncate=overwrite, named=False)
        images = ((i, find_image(path, sample)) for i, sample in enumerate(self._samples))
        self._sample_numbers = {image.offset: i for i, image in images if image}
        self._next, self._captioned = 0, set[int]()
        self._resume()
        self._first = self._next

    def _resume(self) -> None:
        """Find out how many samples an earlier run has copied, and drop a torn one."""
        copied: list[TarMember] = []
        with contextlib.suppress(OSError):  # truncated
            copied.extend(read_members(str(self._partial)))
        at = 0
        for number, sample in enumerate(self._samples):
            names = [member.name for member in self._unchanged(sample)]
            after = at + len(names)
            if [member.name for member in copied[at:after]] != names:
                break
            captioned = after < len(copied) and copied[after].name == sample[0].key + self._extension
            if not captioned and after >= len(copied):
                break  # the caption may not have been written yet
            if captioned:
                self._captioned.add(number)
            at = after + captioned
            self._next = number + 1
        self._file.truncate(copied[at - 1].end if at else 0)

    def _unchanged(self, sample: list[TarMember]) -> list[TarMember]:
        return [member for member in sample if member.name != member.key + self._extension]

    def needs(self, picture: Picture) -> bool | Failure:
        return not self._complete and self._sample_numbers[picture.offset] not in self._captioned

    def write(self, picture: Picture, description: Description) -> None:
        number = self._sample_numbers[picture.offset]
        if number >= self._first:
            self._copy_until(number)
            text = "".join(f"{caption}\n" for caption in description.captions).encode("utf-8", "surrogateescape")
            self._copy_sample(self._samples[number], text)
            self._next = number + 1

    def _copy_until(self, end: int) -> None:
        """Copy the samples before `end`, which have no readable picture."""
        while self._next < end:
            self._copy_sample(self._samples[self._next], None)
            self._next += 1

    def _copy_sample(self, sample: list[TarMember], text: bytes | None) -> None:
        pieces = []
        with open(self.path, "rb") as file:
            for member in self._unchanged(sample):
                file.seek(member.start)
                piece = file.read(member.end - member.start)
                pieces.append(piece + bytes(member.end - member.start - len(piece)))
        if text is not None:
            info = tarfile.TarInfo(sample[0].key + self._extension)
            info.size = len(text)
            header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            pieces += [header, text, bytes(-len(text) % BLOCK)]
        self._file.append(b"".join(pieces))

    def finish(self, failed: bool) -> None:
        """Complete the copy and give it its final name."""
        if self._complete or self._truncated:
            return
        self._copy_until(len(self._samples))
        self._file.append(bytes(2 * BLOCK))
        self._file.sync()
        os.replace(self._partial, self._target)
        self._complete = True

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def copy_targets(sources: Sources, out: str) -> list[tuple[str, Path]]:
    """Return each shard with the path of its copy in the folder `out`. Raises OptionError."""
    paths: list[str] = []
    for path in dict.fromkeys(expanded for given in sources.paths for expanded in expand(given)):
        if isinstance(path, Failure):
            raise OptionError(path.reason)
        paths.append(path)
    others = [path for path in paths if not is_shard(path)]
    if others and is_url(others[0]):
        fix = "give a .jsonl, .csv or .parquet file, or copy the shards here"
        raise OptionError(f"{others[0]!r} is a URL, and --out is a folder for copies of local shards: {fix}")
    if others and not os.path.lexists(others[0]):
        raise OptionError(f"no such file: {others[0]!r}")
    if others or sources.lists:
        name = others[0] if others else sources.lists[0]
        raise OptionError(f"{name!r} is not a shard, and --out is a folder: give only .tar files, or a file for --out")
    targets = [Path(out, os.path.basename(path)) for path in paths]
    for path, target in zip(paths, targets, strict=True):
        if targets.count(target) > 1:
            raise OptionError(f"two shards are named {target.name}: caption them into separate folders")
        if os.path.realpath(path) == os.path.realpath(target):
            raise OptionError(f"{path} would overwrite itself: give another folder for --out")
    Path(out).mkdir(parents=True, exist_ok=True)
    for target in targets:
        check_writable(str(target))
    return list(zip(paths, targets, strict=True))
