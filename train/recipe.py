"""Settings from one YAML recipe and the command line, where fields are flat, into groups of fields.

A group is a frozen dataclass of `option` fields or of other groups; its docstring is its title in --help. A field's
name is the recipe's key and, with hyphens, the command line's option. `parse` fills a group's field `given` with what
recipe and command line set. The meaning of fields is not known here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import yaml

from blip2rt.command_line import Parser
from blip2rt.errors import OptionError, boundary

from . import recipe_files

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DEVICE = "a GPU is used if PyTorch finds one, else the CPU; CUDA_VISIBLE_DEVICES= before the command hides the GPUs"
T = TypeVar("T", bound="DataclassInstance")
Given = Mapping[str, Any]  # the fields that recipe or command line name, with their values


@dataclasses.dataclass(frozen=True)
class Check:
    """A test of a field's value, and a description of valid ones."""

    expected: str
    accepts: Callable[[Any], bool]


def option(
    default: Any, help: str, *, check: Check | None = None, metavar: str | None = None, replaces: str = ""
) -> Any:
    """Declare a field with its help.

    replaces: the field that this one overrides where it is given
    later: on the command line, or in a recipe based on another.
    """
    described = {"help": help, "check": check, "metavar": metavar, "replaces": replaces}
    return dataclasses.field(default=default, metadata=described)


def parse(cls: type[T], argv: list[str] | None, description: str, more: Callable[[T], list[str]] | None = None) -> T:
    """Parse `--recipe FILE` and `--field VALUE`. Raise OptionError, which names all faults.

    more: finds further faults of settings that are already invalid.
    """
    fields = {field.name: (field, each.hints[field.name]) for each in _groups(cls) for field in each.fields}
    replaced = {name: field.metadata["replaces"] for name, (field, _) in fields.items()}
    known = _Fields({name: hint for name, (_, hint) in fields.items()}, replaced, [])
    arguments = vars(_parser(cls, description).parse_args(argv))
    recipe = _read_recipe(arguments.pop("recipe"), known)
    flags = {name: value for name, value in arguments.items() if value is not None}
    wrong = {name: _type_faults(name, value, known.hints[name]) for name, value in flags.items()}
    flags = {name: tuple(v) if isinstance(v, list) else v for name, v in flags.items() if not wrong[name]}
    settings = compose(cls, _overridden(recipe, flags, replaced))
    found = [*known.faults, *(fault for each in wrong.values() for fault in each), *faults(settings)]
    if found:
        found += [] if more is None else more(settings)
        raise OptionError("; ".join(dict.fromkeys(found)))
    return settings


@dataclasses.dataclass(frozen=True)
class _Fields:
    """The known fields: their types and what they replace, by name; and the faults found in recipes so far."""

    hints: Mapping[str, Any]
    replaced: Mapping[str, str]
    faults: list[str]


def _overridden(lower: Given, upper: Given, replaced: Mapping[str, str]) -> dict[str, Any]:
    """The fields of both; `upper` wins, and drops the fields that its own replace."""
    gone = {replaced[name] for name in upper}
    return {name: value for name, value in lower.items() if name not in gone} | dict(upper)


def compose(cls: type[T], values: Given) -> T:
    """Build settings of class `cls` from these values; other fields have their defaults."""
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = compose(hints[field.name], values)
        elif field.name == "given":
            arguments["given"] = dict(values)
        elif field.name in values:
            arguments[field.name] = values[field.name]
    return cls(**arguments)


def flat(settings: DataclassInstance) -> dict[str, Any]:
    """Return every field of every group by name, and `given`: the names that recipe or command line set."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if _is_group(value):
            found |= flat(value)
        else:
            found[field.name] = sorted(value) if field.name == "given" else value
    return found


def faults(settings: DataclassInstance) -> list[str]:
    """Return what is wrong with values: the fields' checks, then the groups' `faults` methods."""
    found: list[str] = []
    for field in dataclasses.fields(settings):
        value, check = getattr(settings, field.name), field.metadata.get("check")
        if _is_group(value):
            found += faults(value)
        elif check is not None and not check.accepts(value):
            found.append(f"{field.name} is {value!r}: give {check.expected}")
    return found + (settings.faults() if hasattr(settings, "faults") else [])


def _is_group(value: object) -> TypeGuard[DataclassInstance]:
    return dataclasses.is_dataclass(value)


@dataclasses.dataclass(frozen=True)
class _Group:
    """A group with fields of its own. hints: their types, by name."""

    title: str
    fields: list[dataclasses.Field[Any]]
    hints: dict[str, Any]


def _groups(cls: type) -> Iterator[_Group]:
    """Yield the groups in `cls`, then `cls` itself if it has fields of its own."""
    hints, own = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _groups(hints[field.name])
        elif "help" in field.metadata:
            own.append(field)
    if own:
        yield _Group((cls.__doc__ or "").splitlines()[0].rstrip("."), own, hints)


def _parser(cls: type, description: str) -> Parser:
    usage = "%(prog)s [--recipe RECIPE] [--FIELD VALUE ...]"
    parser = Parser(usage=usage, description=description, explained={"--device": DEVICE})
    recipe = "take any of the fields below from a YAML file, or from a recipe that `blip2rt-train recipes` lists"
    parser.add_argument("--recipe", metavar="RECIPE", help=recipe)
    for each in _groups(cls):
        options = parser.add_argument_group(each.title)
        for field in each.fields:
            _add(options, field, each.hints[field.name])
    return parser


def _add(parser: argparse._ActionsContainer, field: dataclasses.Field[Any], hint: Any) -> None:
    name, described = f"--{field.name.replace('_', '-')}", field.metadata
    text = f"{described['help']}{_default(field.default)}".replace("%", "%%")
    metavar = described["metavar"] or {int: "N", float: "X", str: "TEXT"}.get(hint)
    if hint is bool:
        parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
    elif typing.get_origin(hint) is tuple:
        numbers = hint == tuple[float, ...]
        parse_item, metavar = (float, "X") if numbers else (_yaml, metavar or "ITEM")
        parser.add_argument(name, nargs="*", type=parse_item, metavar=metavar, help=text)
    else:
        parser.add_argument(name, type=hint, metavar=metavar, help=text)


def _default(value: Any) -> str:
    """Format the default for --help; empty defaults are not shown."""
    if isinstance(value, bool):
        return f" (default: {'on' if value else 'off'})"
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f" (default: {shown if shown.isprintable() else repr(shown)})" if shown else ""


def _read_recipe(path: str | None, known: _Fields, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the fields of a recipe, with those of its `base`, a file beside it or one that ships, as defaults.

    above: the recipes based on it. Unknown fields and wrong types are added to `known.faults`.
    """
    if path is None:
        return {}
    file = recipe_files.find(path).resolve()
    if file in above:
        raise OptionError(f"recipe {path!r} is based on itself: give another base")
    with boundary(f"recipe {path!r} is not YAML", OptionError):
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise OptionError(f"recipe {path!r} is not a mapping: give lines of field: value")
    base = data.pop("base", None)
    beside = file.parent / str(base)
    inherited = {} if base is None else _read_recipe(str(beside if beside.is_file() else base), known, (*above, file))
    data = {key: _number(value, known.hints.get(key)) for key, value in data.items()}
    types = {key: _type_faults(key, value, known.hints[key]) for key, value in data.items() if key in known.hints}
    found = [_unknown(key, known.hints) for key in data if key not in known.hints]
    if found := [*found, *(fault for each in types.values() for fault in each)]:
        known.faults.append(f"recipe {path!r}: {'; '.join(found)}")
    own = {key: _convert(data[key], known.hints[key]) for key, wrong in types.items() if not wrong}
    return _overridden(inherited, own, known.replaced)


_TYPE_NAMES = {int: "an int", float: "a float", bool: "true or false", str: "a str", dict: "a mapping"}


def _number(value: Any, hint: Any) -> Any:
    """Convert 1e-4, which YAML reads as text (it wants 1.0e-4)."""
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _type_faults(name: str, value: Any, hint: Any) -> list[str]:
    """Return what is wrong with the type of a field's value, or of one of its items."""
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            return [f"{name} is {value!r}: give a list"]
        return [fault for each in value for fault in _type_faults(f"an item of {name}", each, item)][:1]
    kind = typing.get_origin(hint) or hint
    accepted = (int, float) if kind is float else kind
    is_bool = isinstance(value, bool) and kind in (int, float)
    return [f"{name} is {value!r}: give {_TYPE_NAMES[kind]}"] if is_bool or not isinstance(value, accepted) else []


def _convert(value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return float(value) if hint is float else value


def _yaml(text: str) -> Any:
    """Parse an item of a list option."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError("it is not YAML, such as {path: FOLDER}") from error


def _unknown(key: str, hints: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), hints, 1)
    return f"unknown field {key!r}" + (f": did you mean {near[0]!r}?" if near else ": leave it out")
