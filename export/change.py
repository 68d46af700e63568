"""`blip2rt-convert CKPT --set FIELD=VALUE`: change fields in the config of a checkpoint of ours; the tensors stay."""

from __future__ import annotations

import dataclasses
import difflib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from blip2rt.errors import OptionError, boundary, collected
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoint import CONFIG, WEIGHTS, Checkpoint
from blip2rt.modeling.llm import LanguageModelSource
from blip2rt.modeling.vision import VisionEncoder

_FIXED = ("stage", "vision_trained", "llm.lora_rank", "llm.lora_layers", "llm.adapters")  # they determine the tensors
_KINDS: dict[str, tuple[Any, str]] = {  # by the beginning of a field's type
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "bool": (bool, "true or false"),
    "tuple": (list, "a list in JSON"),
    "dict": (dict, "an object in JSON"),
}


def change(checkpoint: Checkpoint, assignments: Sequence[str], folder: Path) -> None:
    """Write the checkpoint, its config changed by each "FIELD=VALUE", into the folder.

    Raises Blip2rtError, which lists all faults.
    """
    path, source = checkpoint.path, checkpoint.source
    with boundary(f"checkpoint {path}: its {CONFIG} is damaged"):
        ours = (path / CONFIG).is_file() and (path / WEIGHTS).is_file() and not checkpoint.is_hugging_face
        if not ours:
            raise OptionError(f"--set: {source} is not a checkpoint of blip2rt: give a folder that training wrote")
        data = checkpoint.stored_config
        before = Blip2Config.from_json(data)
    changed, faults, fields = json.loads(json.dumps(data)), list[str](), dict(_fields(before))
    for assignment in assignments:
        with collected(faults):
            _assign(changed, assignment, fields)
    if faults:
        raise OptionError(f"--set: {'; '.join(faults)}")
    _require_same_tensors(before, changed)
    shutil.copyfile(path / WEIGHTS, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(changed, indent=2) + "\n")


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every field of a config by its dotted name, with its type; a group that is None has none."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        elif field.name not in ("llm", "vit"):
            yield prefix + field.name, str(field.type)


def _assign(data: dict[str, Any], assignment: str, fields: dict[str, str]) -> None:
    """Change one field of a config's JSON. Raises OptionError for an unknown field or a value of another type."""
    name, equals, text = assignment.partition("=")
    if not equals:
        raise OptionError(f"{assignment!r} has no value: give FIELD=VALUE")
    if name not in fields:
        near = difflib.get_close_matches(name, fields, 1)
        fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(fields))}"
        raise OptionError(f"unknown field {name!r}: {fix}")
    if name in _FIXED:
        raise OptionError(
            f"{name} determines the checkpoint's tensors, which cannot change: train or export it instead"
        )
    value = _value(name, text, fields[name])
    if name in ("qformer_bits", "llm.bits") and value not in (0, 4, 8):
        raise OptionError(f"{name} is {value}: give 0, 4, 8")
    *groups, last = name.split(".")
    for group in groups:
        data = data[group]
    data[last] = value


def _value(name: str, text: str, hint: str) -> Any:
    """The text as JSON of a field's type, which a list may be of a tuple's. Raises OptionError."""
    if text == "null" and hint.endswith("None"):
        return None
    kind = hint.partition(" ")[0].partition("[")[0]
    if kind == "str":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    accepted, described = _KINDS[kind]
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind == "bool"):
        raise OptionError(f"{name} is {text!r}: give {described}")
    return value


def _require_same_tensors(before: Blip2Config, changed: dict[str, Any]) -> None:
    """Raise OptionError if a model of the changed config has other tensors."""
    with boundary("--set: this config is invalid", OptionError):
        ours, theirs = _shapes(before), _shapes(Blip2Config.from_json(changed))
    other = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if other:
        name = other[0]
        has, wants = (str(shapes[name]) if name in shapes else "none" for shapes in (ours, theirs))
        raise OptionError(
            f"--set: the checkpoint's tensors do not fit: {name} has the shape {has}, but {wants} would be needed; "
            "change fields that do not affect shapes"
        )


def _shapes(config: Blip2Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a checkpoint of such a config."""
    width = None if config.llm is None else LanguageModelSource(config.llm).hidden_size
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Blip2(config, llm_width=width).state_dict().items()}
        if config.vision_trained:
            encoder = VisionEncoder(config.vision, empty=True)
            shapes |= {f"vision.{name}": tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    return shapes
