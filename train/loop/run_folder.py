"""A training's folder: one run at a time writes to it, and all processes belong to the same run."""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from blip2rt.modeling.sources import list_checkpoints, read_json
from blip2rt.system import lock_file

from .conflicts import MALFORMED, STATE, settings_conflict
from .parallel import this_process

LOCK = "training.lock"


@contextlib.contextmanager
def lock_folder(out: str | Path, record: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Inside, no other run can write to the folder. record: all settings of the training that will resume there.

    Raise Blip2rtError, in all processes, if another run holds the lock, or the newest checkpoint has other settings.
    The system releases the lock of a process that dies. File systems without locks are not protected.
    """
    with contextlib.ExitStack() as stack:
        fault = ""
        if this_process().main:
            Path(out).mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(Path(out) / LOCK, "a+", encoding="utf-8"))
            fault = _lock(Path(out), file) or settings_conflict(Path(out), record or {})
        this_process().raise_together(fault)
        yield


def _lock(out: Path, file: IO[str]) -> str:
    """Lock an open file. Return a fault if another process holds it."""
    if not lock_file(file, inherited=False):
        file.seek(0)
        owner = file.read(200).strip() or "another process"
        return f"out {str(out)!r} is in use by another training ({owner}): wait until it ends, or give another folder"
    with contextlib.suppress(OSError):  # a full disk: saving a checkpoint will report it
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return ""


def require_same_run(out: Path) -> None:
    """Raise Blip2rtError, in all processes, if their folders hold different steps or different trainings.

    Nodes without a shared folder start together; to resume, each needs a copy of the newest checkpoint.
    """
    what = f"the newest checkpoints in {out} (share it among the nodes, or copy one to each)"
    this_process().require_same(what, _newest(out))


def _newest(out: Path) -> tuple[int, str]:
    """Return the step and the run id of the newest checkpoint."""
    found = list_checkpoints(out)
    if not found:
        return 0, ""
    try:
        saved = read_json(found[-1] / STATE)
        return int(saved["step"]), str(saved.get("run", ""))
    except MALFORMED:
        return -1, ""


def run_id(out: Path) -> str:
    """Return the id of this training: the newest checkpoint's, or a new one, equal in all processes."""
    _, run = _newest(out)
    return this_process().gather_objects(run or os.urandom(8).hex())[0]
