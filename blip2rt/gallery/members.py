"""The files in a shard of WebDataset, a .tar file of samples: `key.jpg` with `key.txt` or `key.json` beside it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from ..image_kinds import HEAD, kind_of, looks_named
from .pictures import Fault, Picture

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Member:
    """A file in a shard: its name, where its header begins, where its bytes are."""

    name: str
    start: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + -(-self.size // BLOCK) * BLOCK

    @property
    def key(self) -> str:
        """What the files of a sample share: the name up to the first dot of its last part."""
        folder, name = os.path.split(self.name)
        return os.path.join(folder, name.partition(".")[0])


def members(path: str) -> Iterator[Member]:
    """The files of a shard, as far as it is whole. Raises OSError for what is no uncompressed tar file."""
    size, found = os.stat(path).st_size, False
    if size == 0:
        return
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                member = Member(info.name, info.offset, info.offset_data, info.size)
                if member.offset + member.size > size:
                    return
                found = True
                if info.isfile():
                    yield member
    except tarfile.TarError as error:
        if found:  # it ends too early
            return
        raise OSError(0, f"it is not a whole uncompressed tar file ({error})", path) from None


def samples(path: str) -> Iterator[list[Member]]:
    """The members of a shard, those of a sample together."""
    sample: list[Member] = []
    for member in members(path):
        if sample and member.key != sample[0].key:
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def image_of(path: str, sample: list[Member]) -> Member | None:
    """The picture of a sample: by its name, or by its first bytes."""
    named = [member for member in sample if looks_named(member.name)]
    if named:
        return named[0]
    with open(path, "rb") as file:
        for member in sample:
            file.seek(member.offset)
            if kind_of(file.read(min(HEAD, member.size))):
                return member
    return None


def pictures_of(path: str) -> Iterator[Picture | Fault]:
    """The pictures of a shard, one for each sample that has any."""
    try:
        for sample in samples(path):
            image = image_of(path, sample)
            if image is not None:
                yield Picture(os.path.join(path, image.name), path, image.offset, image.size)
    except OSError as error:
        yield Fault(path, f"cannot read {path!r}: {error.strerror}")
