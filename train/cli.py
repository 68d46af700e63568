"""How the training commands end: one line and exit code 2 for the user's mistakes and what is not installed, 130 for
Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import TracebackType

from blip2rt.errors import Blip2rtError

_OURS = ("blip2rt", "blip2rt_train", "train")  # one of these that is missing is a bug


def run_main(work: Callable[[], object]) -> int:
    try:
        work()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from .loop.parallel import leave  # torch, which not every command needs

            leave()
    except Blip2rtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what has been kept", file=sys.stderr)
        return 130
    return 0


def tell_missing(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """sys.excepthook of the commands (train/__init__.py)."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or error.name.partition(".")[0] in _OURS:
        sys.__excepthook__(kind, error, traceback)
        return
    print(f"error: {error.name} is not installed; pip install 'blip2rt[train]'", file=sys.stderr)
    raise SystemExit(2)
