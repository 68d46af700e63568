"""The folder of a training: one run at a time writes it, and it is the same run in all processes.

Knows files and processes, nothing about models.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from blip2rt.modeling.checkpoints import list_checkpoints
from blip2rt.modeling.json_file import read_json

from ..settings import LogSettings, MachineSettings, OptimizerSettings, RunSettings
from .parallel import here

LOCK, STATE = "training.lock", "trainer.json"


# A training that goes on may have other values of these: how far, how fast, where and how it runs, what it tells.
_FREE = {
    each.name for group in (RunSettings, OptimizerSettings, MachineSettings, LogSettings) for each in fields(group)
}
_FREE |= {"given", "sources", "accumulate", "workers", "max_bad", "features", "dev_table", "cache_layers"}
_FREE |= {"projection_lr", "lora_lr", "head_lr"}


@contextlib.contextmanager
def owned(out: str | Path, record: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Inside, no other run writes the folder. record: all settings of the training that is to go on there.

    Raise Blip2rtError, in all processes, where another run writes it, or its newest checkpoint has other settings.
    The system takes the lock from a process that dies. File systems without locks have none.
    """
    with contextlib.ExitStack() as stack:
        fault = ""
        if here().main:
            Path(out).mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(Path(out) / LOCK, "a+", encoding="utf-8"))
            fault = _lock(Path(out), file) or other_settings(Path(out), record or {})
        here().agree(fault)
        yield


def _lock(out: Path, file: IO[str]) -> str:
    """Lock an open file. Return what is wrong where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return ""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process alone: its workers do not inherit it
    except BlockingIOError:
        file.seek(0)
        who = file.read(200).strip() or "another process"
        return f"out {str(out)!r} is written by another training ({who}): wait until it ends, or give another folder"
    except OSError:
        return ""
    with contextlib.suppress(OSError):  # a full disk, of which a checkpoint has more to say
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return ""


def other_settings(out: Path, record: Mapping[str, Any]) -> str:
    """What is wrong where the newest checkpoint is of a training with other settings than `record`, which has all.

    What may differ is in _FREE; so may what an older checkpoint does not hold.
    """
    found = list_checkpoints(out)
    if not found or record.get("resume") == "always":
        return ""
    try:
        before = dict(read_json(found[-1] / STATE)["settings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # resume() says what is wrong
        return ""
    if "max_text_tokens" in before:  # a stage 2, which cleaned answers before there was a field
        before.setdefault("clean_answers", True)
    now = json.loads(json.dumps(dict(record)))
    others = [name for name in now if name in before and name not in _FREE and now[name] != before[name]]
    if not others:
        return ""
    listed = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in others)
    return (
        f"out {str(out)!r} has checkpoints of another training ({listed}): give another folder or the former "
        "settings, or --resume always to go on with these"
    )


def check_same_run(out: Path) -> None:
    """Raise Blip2rtError, in all processes, where their folders hold different steps or different trainings.

    Nodes that share no folder begin together. They go on together where the checkpoint was copied to all of them.
    """
    step, run = _newest(out)
    mine = (step, run, f"{out} on {socket.gethostname()}")
    first, *others = here().everyone(mine)
    fault = ""
    for step, run, where in others:
        if step != first[0]:
            fault = f"{first[2]} is at step {first[0]}, {where} at step {step}: share out among the nodes, or copy the "
            fault += f"checkpoint of step {max(step, first[0])} to each"
        elif run != first[1]:
            fault = f"{first[2]} and {where} hold different trainings: share out among the nodes, or give another one"
        if fault:
            break
    here().agree(fault)


def _newest(out: Path) -> tuple[int, str]:
    """The newest checkpoint's step, and what tells its training from others."""
    found = list_checkpoints(out)
    if not found:
        return 0, ""
    try:
        kept = read_json(found[-1] / STATE)
        return int(kept["step"]), str(kept.get("run", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # resume() says what is wrong
        return -1, ""


def run_id(out: Path) -> str:
    """What tells this training from others: the newest checkpoint's, or a new one, the same in all processes."""
    _, run = _newest(out)
    return here().everyone(run or os.urandom(8).hex())[0]
