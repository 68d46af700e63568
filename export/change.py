"""`blip2rt-convert CKPT --set FIELD=VALUE`: change fields in the config of a checkpoint of ours; the tensors stay."""

from __future__ import annotations

import dataclasses
import difflib
import json
import shutil
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip2rt.errors import OptionError, boundary
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoint import CONFIG, WEIGHTS, Checkpoint
from blip2rt.modeling.llm import LanguageModelSource
from blip2rt.modeling.vision import VisionEncoder

_BITS = (0, 4, 8)
_CHOICES = {"qformer_bits": _BITS, "llm.bits": _BITS}
_FIXED = ("stage", "vision_trained", "llm.lora_rank", "llm.lora_layers", "llm.adapters")  # they determine the tensors


@dataclass(frozen=True)
class Field:
    """A field of a config, and its type."""

    name: str  # dotted: "llm.bits"
    hint: Any


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
    changed, faults = json.loads(json.dumps(data)), list[str]()
    for assignment in assignments:
        try:
            _assign(changed, assignment, _fields(before))
        except OptionError as error:
            faults.append(str(error))
    if faults:
        raise OptionError(f"--set: {'; '.join(faults)}")
    _require_same_tensors(before, changed)
    shutil.copyfile(path / WEIGHTS, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(changed, indent=2) + "\n")


def _fields(config: Any, prefix: str = "") -> dict[str, Field]:
    """Every field of a config by its dotted name; a group that is None has none."""
    hints = typing.get_type_hints(type(config))
    found: dict[str, Field] = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= _fields(value, f"{name}.")
        elif not any(dataclasses.is_dataclass(kind) for kind in _kinds(hints[field.name])):
            found[name] = Field(name, hints[field.name])
    return found


def _assign(data: dict[str, Any], assignment: str, fields: dict[str, Field]) -> None:
    """Change one field of a config's JSON. Raises OptionError for an unknown field or a value of another type."""
    name, equals, text = assignment.partition("=")
    if not equals:
        raise OptionError(f"{assignment!r} has no value: give FIELD=VALUE")
    if name not in fields:
        near = difflib.get_close_matches(name, fields, 1)
        raise OptionError(f"unknown field {name!r}: " + (f"did you mean {near[0]}?" if near else _listed(fields)))
    if name in _FIXED:
        raise OptionError(
            f"{name} determines the checkpoint's tensors, which cannot change: train or export it instead"
        )
    value = _value(text, fields[name])
    if name in _CHOICES and value not in _CHOICES[name]:
        raise OptionError(f"{name} is {value}: give {', '.join(map(str, _CHOICES[name]))}")
    *groups, last = name.split(".")
    for group in groups:
        data = data[group]
    data[last] = value


def _listed(fields: dict[str, Field]) -> str:
    return f"there are {', '.join(sorted(fields))}"


def _value(text: str, field: Field) -> Any:
    """The text as JSON, or itself if the field is a string or it is not JSON. Raises OptionError."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if _fits(value, field.hint):
        return value
    if _fits(text, field.hint):
        return text
    raise OptionError(f"{field.name} is {text!r}: give {_described(field.hint)}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type: (int,) of int, (str, NoneType) of str | None."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has a config's type; a list may be a tuple."""
    return any(_is(value, kind) for kind in _kinds(hint))


def _is(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        many = len(inner) == 2 and inner[1] is Ellipsis
        wanted = inner[:1] * len(value) if many else inner
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if kind is Any:
        return True
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def _described(hint: Any) -> str:
    return " or ".join(_NAMES.get(kind, "a list in JSON") for kind in _kinds(hint))


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
