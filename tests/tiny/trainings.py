"""Trainings that do not come to their end."""

from __future__ import annotations

from typing import Any

import pytest


def interrupt(run: Any, at: int = 4) -> None:
    """Run a training, and break it off as Ctrl-C does at step `at`: after the checkpoint of step 3 of tiny settings."""
    whole = run.trainer._step

    def step(number: int, backward: Any) -> dict[str, float]:
        if number == at:
            raise KeyboardInterrupt
        found: dict[str, float] = whole(number, backward)
        return found

    run.trainer._step = step
    with pytest.raises(KeyboardInterrupt):
        run.run()
