"""What differs between systems: file locks, shared files, forks, limits of memory, CPU affinity, the cache's folder.

Where a system lacks something, the functions do the next best. No other module imports fcntl or resource, or calls
os.sched_* and os.register_at_fork.
"""

import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from threading import Lock
from typing import IO, Any


def lock_file(file: IO[Any], wait: bool = False, inherited: bool = True) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock.

    Without locks, on Windows and some network file systems, it returns True. inherited: forks share the lock.
    """
    try:
        import fcntl
    except ImportError:
        return True
    locking = fcntl.flock if inherited else fcntl.lockf
    try:
        locking(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


_SEEKING = Lock()


def read_range(descriptor: int, size: int, offset: int) -> bytes:
    """Read a range of an open file. Threads may share its descriptor."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def at_fork(before: Callable[[], Any], after: Callable[[], Any]) -> None:
    """Call `before` before each fork, and `after` in parent and child."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)


def usable_cpus() -> Collection[int]:
    """The numbers of the logical cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def physical_cores() -> int:
    """The number of physical cores available to this process; logical ones if the topology is unknown."""
    usable = usable_cpus()
    topology = Path("/sys/devices/system/cpu")
    try:
        return len({(topology / f"cpu{i}" / "topology" / "thread_siblings_list").read_text() for i in usable})
    except OSError:
        return len(usable)


def is_address_space_limited() -> bool:
    """Whether `ulimit -v` limits this process."""
    try:
        import resource
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def peak_memory() -> int:
    """The peak resident memory of this process in bytes; 0 if unknown."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def total_memory() -> int:
    """The physical memory of this machine in bytes; 0 if unknown."""
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def user_cache() -> Path:
    """The folder of blip2rt in the user's cache."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blip2rt"
