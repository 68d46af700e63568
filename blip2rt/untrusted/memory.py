"""Check that memory is left before a library runs that aborts without it."""

import mmap

from ..system import is_address_space_limited

LOADING_BYTES = 320 << 20  # address space of ONNX Runtime, its threads and arenas, besides the files that it maps


def require_address_space(file_bytes: int) -> None:
    """Raise MemoryError if `ulimit -v` leaves no room to open graphs with files of this size."""
    if not is_address_space_limited():
        return
    try:
        mmap.mmap(-1, file_bytes + LOADING_BYTES).close()
    except OSError:
        raise MemoryError(f"{file_bytes + LOADING_BYTES} bytes") from None
