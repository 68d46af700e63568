"""Shards that get captions: a copy of each, with `key.txt` in place of one that was there.

A copy grows sample by sample under a hidden name, which says how far a run before came. When it is whole it gets its
name. Members other than the text are copied byte for byte, folders and links too. The copy of a shard that ends too
early keeps its hidden name; a run that finds the shard whole goes on with it.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from pathlib import Path

from ..errors import OptionError
from .lines import Lines
from .members import BLOCK, Member, image_of, members, samples
from .outputs import Described, check_target, checked_extension
from .pictures import Fault, Picture, Sources, is_shard
from .walk import expanded


class Shard:
    """A copy of a shard that gets captions. A sink of its pictures."""

    def __init__(self, path: str, target: Path, extension: str, overwrite: bool) -> None:
        """extension: of the texts. overwrite: make a copy that is there anew."""
        self.path, self._target = path, target
        self._extension = checked_extension(extension)
        self._partial = target.with_name(f".{target.name}.partial")
        self._whole = target.exists() and not overwrite
        if self._whole:
            return
        self._samples: list[list[Member]] = []  # names and places, no pictures
        self._cut = False
        try:
            self._samples.extend(samples(path))
        except OSError:  # the walk says what is wrong
            self._cut = True
            if not self._samples:
                self._whole = True  # nothing is written
                return
        self._lines = Lines(str(self._partial), overwrite)
        self._numbers = {image.offset: i for i, s in enumerate(self._samples) if (image := image_of(path, s))}
        self._next, self._texts = 0, set[int]()
        self._resume()
        self._from = self._next

    def _resume(self) -> None:
        """See how many samples a run before has copied; drop one that is torn."""
        have: list[Member] = []
        with contextlib.suppress(OSError):  # it ends too early
            have.extend(members(str(self._partial)))
        at = 0
        for number, sample in enumerate(self._samples):
            kept = [member.name for member in self._kept(sample)]
            after = at + len(kept)
            if [member.name for member in have[at:after]] != kept:
                break
            captioned = after < len(have) and have[after].name == sample[0].key + self._extension
            if not captioned and after >= len(have):
                break  # its text may have been on the way
            if captioned:
                self._texts.add(number)
            at = after + captioned
            self._next = number + 1
        self._lines.cut(have[at - 1].end if at else 0)

    def _kept(self, sample: list[Member]) -> list[Member]:
        return [member for member in sample if member.name != member.key + self._extension]

    def todo(self, picture: Picture) -> bool | Fault:
        return not self._whole and self._numbers[picture.offset] not in self._texts

    def write(self, picture: Picture, described: Described) -> None:
        number = self._numbers[picture.offset]
        if number >= self._from:
            self._copy(number)
            text = "".join(f"{caption}\n" for caption in described.captions).encode("utf-8", "surrogateescape")
            self._copy_sample(self._samples[number], text)
            self._next = number + 1

    def _copy(self, end: int) -> None:
        """Copy the samples before `end` that have no picture, or one that cannot be read."""
        while self._next < end:
            self._copy_sample(self._samples[self._next], None)
            self._next += 1

    def _copy_sample(self, sample: list[Member], text: bytes | None) -> None:
        pieces = []
        with open(self.path, "rb") as file:
            for member in self._kept(sample):
                file.seek(member.start)
                piece = file.read(member.end - member.start)
                pieces.append(piece + bytes(member.end - member.start - len(piece)))
        if text is not None:
            info = tarfile.TarInfo(sample[0].key + self._extension)
            info.size = len(text)
            header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            pieces += [header, text, bytes(-len(text) % BLOCK)]
        self._lines.append(b"".join(pieces))

    def finish(self, failed: bool) -> None:
        """End the copy, and give it its name."""
        if self._whole or self._cut:
            return
        self._copy(len(self._samples))
        self._lines.append(bytes(2 * BLOCK))
        self._lines.sync()
        os.replace(self._partial, self._target)
        self._whole = True

    def close(self) -> None:
        if hasattr(self, "_lines"):
            self._lines.close()


def copies(sources: Sources, out: str) -> list[tuple[str, Path]]:
    """Each shard, and where in the folder `out` its copy goes. Raises OptionError."""
    paths: list[str] = []
    for each in dict.fromkeys(each for path in sources.paths for each in expanded(path)):
        if isinstance(each, Fault):
            raise OptionError(each.why)
        paths.append(each)
    wrong = [path for path in paths if not is_shard(path)]
    if wrong and not os.path.lexists(wrong[0]):
        raise OptionError(f"no such file: {wrong[0]!r}")
    if wrong or sources.lists:
        name = wrong[0] if wrong else sources.lists[0]
        raise OptionError(f"{name!r} is no shard, and --out names a folder: give .tar files alone, or a file for --out")
    targets = [Path(out, os.path.basename(path)) for path in paths]
    for path, target in zip(paths, targets, strict=True):
        if targets.count(target) > 1:
            raise OptionError(f"two shards are called {target.name}: caption them into folders of their own")
        if os.path.realpath(path) == os.path.realpath(target):
            raise OptionError(f"{path} would be written over itself: give another folder for --out")
    Path(out).mkdir(parents=True, exist_ok=True)
    for target in targets:
        check_target(str(target))
    return list(zip(paths, targets, strict=True))
