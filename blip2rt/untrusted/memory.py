"""Check that memory is left before a library runs that aborts without it."""

from __future__ import annotations

import mmap

from ..system import is_address_space_limited

LOADING_BYTES = 320 << 20  # address space of ONNX Runtime, its threads and arenas, besides the files that it maps


def require_memory(size: int) -> None:
    """Raise MemoryError unless `size` bytes can be mapped."""
    try:
        mmap.mmap(-1, max(1, size)).close()
    except OSError:
        raise MemoryError(f"{size} bytes") from None


def require_address_space(file_bytes: int) -> None:
    """Raise MemoryError if `ulimit -v` leaves no room to open graphs with files of this size."""
    if is_address_space_limited():
        require_memory(file_bytes + LOADING_BYTES)
