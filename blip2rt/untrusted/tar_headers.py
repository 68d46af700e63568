"""Read the headers of an untrusted tar file. Its members are read by their positions, never by tarfile."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from ..errors import reason

MAX_HEADER_BYTES = 16 << 10  # of a member; a PAX record of digits takes old releases of Python quadratic time


class _Headers(io.FileIO):
    """A file of which only so much is read at a time: tarfile reads as much as a header claims."""

    budget = MAX_HEADER_BYTES

    def read(self, size: int | None = -1, /) -> Any:
        if size is None or size < 0 or size > self.budget:
            raise OSError(0, f"a header has more than {MAX_HEADER_BYTES:,} bytes")
        self.budget -= size
        return super().read(size)


def tar_headers(path: str | os.PathLike[str]) -> Iterator[tuple[tarfile.TarInfo, int, int]]:
    """Yield each member with the start of its headers and the end of its blocks, and the first that is truncated.

    Raises OSError for a damaged header, and for anything but an uncompressed tar file.
    """
    size, start, end = os.stat(path).st_size, 0, 0
    try:
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep them all in memory
                start, end, file.budget = end, tar.offset, MAX_HEADER_BYTES
                if info.size < 0 or end <= start:  # tarfile would read it again and again
                    raise tarfile.TarError(f"{info.name} has a size of {info.size}")
                yield info, start, end
                if end > size:
                    return
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # tarfile raises anything on a malicious header
        raise OSError(0, f"not a complete uncompressed tar file ({reason(error)})", os.fspath(path)) from None


def is_plain(info: tarfile.TarInfo) -> bool:
    """Whether a member is a file whose bytes are stored as they are."""
    return info.isfile() and not info.issparse()
