"""Whether a training may continue what its folder holds. Imports no torch, so that a conflict is found at once."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from blip2rt.modeling.sources import list_checkpoints, read_json

from ..settings import LogSettings, MachineSettings, OptimizerSettings, RunSettings

STATE = "trainer.json"
MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError)  # resume() reports damaged ones

# Fields that may change when a training resumes: length, rates, machine and logging.
_MUTABLE = {each.name for cls in (RunSettings, OptimizerSettings, MachineSettings, LogSettings) for each in fields(cls)}
_MUTABLE |= {"given", "sources", "accumulate", "workers", "max_bad", "features", "dev_table"}
_MUTABLE |= {"projection_lr", "lora_lr", "head_lr"}


def settings_conflict(out: Path, record: Mapping[str, Any]) -> str:
    """Return a fault if the newest checkpoint's training had other settings than `record`, which has all fields.

    Fields in _MUTABLE may differ, and so may fields that an older checkpoint lacks.
    """
    found = list_checkpoints(out)
    if not found or record.get("resume") == "always":
        return ""
    try:
        before = dict(read_json(found[-1] / STATE)["settings"])
    except MALFORMED:
        return ""
    if "max_text_tokens" in before:  # stage 2 cleaned answers before the field existed
        before.setdefault("clean_answers", True)
    now = json.loads(json.dumps(dict(record)))
    changed = [name for name in now if name in before and name not in _MUTABLE and now[name] != before[name]]
    if not changed:
        return ""
    listed = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
    return (
        f"out {str(out)!r} has checkpoints of another training ({listed}): give another folder, restore these "
        "settings, or continue with --resume always"
    )
