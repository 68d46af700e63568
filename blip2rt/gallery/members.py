"""The files in a shard of WebDataset, a .tar file of samples: `key.jpg` with `key.txt` or `key.json` beside it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from ..untrusted.image_format import HEAD, kind_of, looks_named
from .pictures import Fault, Picture

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Member:
    """What a shard holds under a name: where its headers begin and its last block ends, where a file's bytes are."""

    name: str
    start: int
    end: int
    offset: int
    size: int
    is_file: bool  # and no folder or link

    @property
    def key(self) -> str:
        """What the files of a sample share: the name up to the first dot of its last part."""
        folder, name = os.path.split(self.name)
        return os.path.join(folder, name.partition(".")[0])


def members(path: str) -> Iterator[Member]:
    """The members of a shard. Raises OSError for what is no uncompressed tar file.

    Of a shard that ends too early the whole members come first, then OSError.
    """
    size, end = os.stat(path).st_size, 0
    if size == 0:
        return
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if tar.offset > size:
                    break
                start, end = end, tar.offset
                yield Member(info.name, start, end, info.offset_data, info.size, info.isfile())
    except tarfile.TarError as error:
        if end == 0:
            raise OSError(0, f"it is not a whole uncompressed tar file ({error})", path) from None
    with open(path, "rb") as file:
        file.seek(end)
        if end < size and file.read(BLOCK) != bytes(BLOCK):
            raise OSError(0, "the shard ends too early, or is damaged: copy it here again", path)


def samples(path: str) -> Iterator[list[Member]]:
    """The members of a shard, those of a sample together. Raises OSError as `members` does."""
    sample: list[Member] = []
    try:
        for member in members(path):
            if sample and member.key != sample[0].key:
                yield sample
                sample = []
            sample.append(member)
    except OSError:
        if sample:
            yield sample
        raise
    if sample:
        yield sample


def image_of(path: str, sample: list[Member]) -> Member | None:
    """The picture of a sample: by its name, or by its first bytes."""
    files = [member for member in sample if member.is_file]
    named = [member for member in files if looks_named(member.name)]
    if named:
        return named[0]
    with open(path, "rb") as file:
        for member in files:
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
