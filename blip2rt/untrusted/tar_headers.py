"""Read the headers of an untrusted tar file. Its members are read by their positions, never by tarfile."""

import os
import tarfile
from collections.abc import Iterator
from io import BufferedReader
from typing import IO, Any

from ..errors import reason
from ..object_storage import Url

_BLOCK = 8 << 20  # bytes of an object read at once
MAX_HEADER_BYTES = 16 << 10  # of a member; a PAX record of digits takes old releases of Python quadratic time


class _Headers:
    """A file of which only so much is read at a time: tarfile reads as much as a header claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.budget = file, MAX_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self.budget:
            raise OSError(0, f"a header has more than {MAX_HEADER_BYTES:,} bytes")
        self.budget -= size
        return self._file.read(size)


def tar_headers(path: str | os.PathLike[str]) -> Iterator[tuple[tarfile.TarInfo, int, int]]:
    """Yield each member with the start of its headers and the end of its blocks, and the first that is truncated.

    path: of a file, or a Url. Raises OSError for a damaged header, and for anything but an uncompressed tar file.
    """
    size, start, end = path.stamp()[0] if isinstance(path, Url) else os.stat(path).st_size, 0, 0
    try:
        with BufferedReader(path.open(), _BLOCK) if isinstance(path, Url) else open(path, "rb", buffering=0) as raw:
            file: Any = _Headers(raw)
            with tarfile.open(fileobj=file, mode="r:") as tar:
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
