"""How the training commands end: one line and exit code 2 for the user's mistakes, 130 for Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from blip2rt.errors import Blip2rtError


def run_main(work: Callable[[], object]) -> int:
    try:
        work()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from .parallel import leave  # torch, which not every command needs

            leave()
    except Blip2rtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what has been kept", file=sys.stderr)
        return 130
    return 0
