"""Reads WebDataset shards: .tar files of samples, such as `key.jpg` with `key.txt` or `key.json`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..object_storage import Url
from ..untrusted.image_format import HEAD, format_of, has_image_name
from ..untrusted.tar_headers import is_plain, tar_headers
from .sources import Failure, Picture, is_shard

BLOCK = 512


@dataclass(frozen=True)
class TarMember:
    """A file of a shard: its name, and the range of its bytes."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The name shared by the files of a sample: everything up to the first dot of the file name."""
        folder, name = os.path.split(self.name)
        return os.path.join(folder, name.partition(".")[0])


def read_members(path: str) -> Iterator[TarMember]:
    """Yield the files of a shard, but no folders, links and sparse files.

    Raises OSError for anything but an uncompressed tar file. A truncated shard yields its complete files first.
    """
    size, end = os.stat(path).st_size, 0
    if size == 0:
        return
    try:
        for info, _, after in tar_headers(path):
            if after > size:
                break
            end = after
            if is_plain(info):
                yield TarMember(info.name, info.offset_data, info.size)
    except OSError:
        if end == 0:
            raise
    with open(path, "rb") as file:
        file.seek(end)
        if end < size and file.read(BLOCK) != bytes(BLOCK):
            raise OSError(0, "the shard is truncated or damaged: copy it again", path)


def read_samples(path: str) -> Iterator[list[TarMember]]:
    """Yield the files of a shard grouped by sample. Raises OSError as `read_members` does."""
    sample: list[TarMember] = []
    try:
        for member in read_members(path):
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


def find_image(path: str, sample: list[TarMember]) -> TarMember | None:
    """Return the picture of a sample, identified by its file name or else by its first bytes."""
    named = [member for member in sample if has_image_name(member.name)]
    if named:
        return named[0]
    with open(path, "rb") as file:
        for member in sample:
            file.seek(member.offset)
            if format_of(file.read(min(HEAD, member.size))):
                return member
    return None


def picture_at(path: Path | Url, offset: int, length: int) -> Path | bytes:
    """Return a path or the bytes of a picture; `path` is that of its shard and its member's name, unless length is -1.

    offset, length: its place in the shard. Raises OSError.
    """
    if isinstance(path, Url):
        shard = path if length < 0 else replace(path, path=f"{path.path.partition('.tar/')[0]}.tar")
        return shard.read(length, offset)
    if length < 0:
        return path
    for parent in path.parents:
        if is_shard(str(parent)):
            with open(parent, "rb") as file:
                file.seek(offset)
                return file.read(min(length, parent.stat().st_size))
    raise FileNotFoundError(2, "its shard is missing", str(path))


def shard_pictures(path: str) -> Iterator[Picture | Failure]:
    """Yield the pictures of a shard, at most one per sample."""
    try:
        for sample in read_samples(path):
            image = find_image(path, sample)
            if image is not None:
                yield Picture(os.path.join(path, image.name), path, image.offset, image.size)
    except OSError as error:
        yield Failure.unreadable(path, error)
