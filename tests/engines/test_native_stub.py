"""blip2rt/_native.pyi says what the built core has: every name, every member, every parameter, in both directions."""

import ast
import re
import typing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import blip2rt
from blip2rt import _native

STUB = Path(blip2rt.__file__).with_name("_native.pyi")

# Names that nanobind leaves open, where the stub says more.
VAGUE = re.compile(r"\b(object|dict|Callable|ndarray)\b")

Members = dict[str, list[str]]  # "Session.run" -> its signature


def normal(annotation: str, aliases: dict[str, str]) -> str:
    for name, text in aliases.items():
        annotation = re.sub(rf"\b{name}\b(?!\[)", text, annotation)
    return re.sub(r"\b(collections\.abc|typing|blip2rt\._native)\.", "", annotation)


def signature(function: ast.FunctionDef, aliases: dict[str, str], defaults: typing.Sequence[Any] = ()) -> list[str]:
    """Return "name: annotation = default" of every parameter but self, and "-> annotation". `defaults` take the place
    of the function's own."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    given = [*[None] * (len(function.args.args) - len(function.args.defaults)), *function.args.defaults]
    parts, values = [], iter(defaults)
    for argument, default in zip(arguments, given, strict=True):
        if argument.arg == "self":
            continue
        text = f"{argument.arg}: {normal(ast.unparse(argument.annotation), aliases) if argument.annotation else ''}"
        if default is not None:
            text += f" = {repr(next(values)) if defaults else ast.unparse(default)}"
        parts.append(text)
    assert function.returns is not None
    return [*parts, f"-> {normal(ast.unparse(function.returns), aliases)}"]


def stub_members(source: str) -> Members:
    """Return "name", or "Class.member", -> signature. A property has the return type alone."""
    tree, members = ast.parse(source), Members()
    aliases = {
        node.targets[0].id: ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            members[node.name] = signature(node, aliases)
        if isinstance(node, ast.ClassDef):
            members[node.name] = []
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    members[f"{node.name}.{member.name}"] = signature(member, aliases)
    return members


def built_signature(value: Any, name: str) -> list[str]:
    overloads = value.__nb_signature__
    assert len(overloads) == 1, f"{name} has overloads: this test reads one signature"
    text, _, defaults = overloads[0]
    text = re.sub(r"\\(\d+)", r"\1", text).replace("def (", "def value(")
    text = re.sub(r"ndarray\[.*?\](?=[,)\] ]|$)", "ndarray", text)
    function = ast.parse(f"{text}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    return signature(function, {}, defaults or ())


def built_members(module: ModuleType | SimpleNamespace) -> Members:
    members = Members()
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if not isinstance(value, type):
            members[name] = built_signature(value, name)
            continue
        members[name] = []
        for key, member in vars(value).items():
            if isinstance(member, property):
                members[f"{name}.{key}"] = built_signature(member.fget, key)
            elif hasattr(member, "__nb_signature__"):
                members[f"{name}.{key}"] = built_signature(member, key)
            else:
                assert key.startswith("__"), f"{name}.{key} is neither a method nor a property"
    return members


def agree(stub: str, built: str) -> bool:
    """Return whether two parameters agree. Types count where the core knows them, defaults where the stub says them."""
    (stub, _, stub_default), (built, _, built_default) = stub.partition(" = "), built.partition(" = ")
    same_default = stub_default == built_default or (stub_default == "..." and built_default != "")
    if VAGUE.search(built):
        return same_default and re.match(r"->|\w+", stub)[0] == re.match(r"->|\w+", built)[0]  # type: ignore[index]
    return same_default and stub == built


def faults(stub: Members, built: Members) -> list[str]:
    found = [f"the stub lacks {name}" for name in built.keys() - stub.keys()]
    found += [f"the core lacks {name}" for name in stub.keys() - built.keys()]
    for name in stub.keys() & built.keys():
        ours, theirs = stub[name], built[name]
        if len(ours) != len(theirs) or not all(map(agree, ours, theirs)):
            found.append(f"{name}: the stub says {', '.join(ours)}; the core says {', '.join(theirs)}")
    return sorted(found)


def test_the_stub_matches_the_core() -> None:
    built = built_members(_native)
    assert {"kernels", "Session.run", "Session.inputs", "Vocabulary.__len__"} <= built.keys()
    assert faults(stub_members(STUB.read_text()), built) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("custom_attention: bool = True", "custom_attention: bool = False", "Session.__init__: the stub says"),
        ("def check(self)", "def verify(self)", "the core lacks SearchBatch.verify"),
        ("def check(self)", "def verify(self)", "the stub lacks SearchBatch.check"),
        ("def version(self) -> str", "def version(self) -> int", "Runtime.version: the stub says -> int"),
    ],
)
def test_differences_are_found(old: str, new: str, fault: str) -> None:
    source = STUB.read_text()
    assert old in source
    found = faults(stub_members(source.replace(old, new)), built_members(_native))
    assert any(each.startswith(fault) for each in found), found
