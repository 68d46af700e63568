"""Open files of an untrusted folder: regular ones only, without waiting for a pipe, bounded by the bytes read."""

import errno
import os
import stat

_PIECE = 1 << 20  # bytes


def require_regular(path: str | os.PathLike[str], follow: bool = True) -> None:
    """Raise OSError for a folder, a pipe, a device or a missing file, and for a link unless `follow`."""
    mode = os.stat(path, follow_symlinks=follow).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = "a link, which is not followed" if stat.S_ISLNK(mode) else "a pipe or a device"
        raise OSError(errno.EINVAL, f"it is {kind}", os.fspath(path))


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, follow: bool = True) -> int:
    """Open a regular file and return its descriptor. Raises OSError as `require_regular` does."""
    try:
        require_regular(path, follow)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)), 0o666)


def read_bounded(path: str | os.PathLike[str], most: int, follow: bool = True) -> bytes:
    """Return the content of a regular file. Raises OSError, also for more than `most` bytes."""
    data = bytearray()
    with open(open_regular(path, follow=follow), "rb", buffering=0) as file:
        claimed = os.fstat(file.fileno()).st_size
        while max(claimed, len(data)) <= most:
            if not (piece := file.read(_PIECE)):
                return bytes(data)
            data += piece
    raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
