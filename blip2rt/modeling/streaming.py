"""Modules whose weights stay on disk: built empty, bound to readers, and filled for good or for one call at a time.

    with empty():
        module = build()                   # parameters take no memory
    bind(module, readers)                  # each parameter knows where its values are
    fill(module)                           # either all of them are read,
    with streamed(module): module(x)       # or each layer's for as long as it computes

A bound parameter is a NaN of the right shape that takes no memory: it can be traced, but not used unnoticed. Small
ones are read immediately, since they are small in total, and tracing may fold them.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

Reader = Callable[[], torch.Tensor]
Shown = Callable[[list[tuple[str, nn.Parameter]]], Iterable[tuple[str, nn.Parameter]]]  # what it iterates over
Entry = tuple[tuple[int, ...], Reader]  # shape, and what reads the tensor

SMALL = 2**20  # elements


@contextlib.contextmanager
def empty() -> Iterator[None]:
    """Build modules whose parameters have a shape and no storage; buffers are real."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def bind(module: nn.Module, readers: Mapping[str, Reader]) -> None:
    """Give every empty parameter of `module` its reader, by name. The readers' shapes must have been checked.

    Tied parameters need one reader; with several, they are untied.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.is_meta:
            names.setdefault(id(parameter), []).append(name)
    for same in names.values():
        default = next(readers[name] for name in same if name in readers)
        made: dict[Reader, nn.Parameter] = {}
        for name in same:
            reader = readers.get(name, default)
            if reader not in made:
                made[reader] = _bound(module.get_parameter(name), reader)
            _set(module, name, made[reader])


def _bound(parameter: nn.Parameter, reader: Reader) -> nn.Parameter:
    shape, trained = parameter.shape, parameter.requires_grad
    if shape.numel() <= SMALL:
        bound = nn.Parameter(reader().float().clone(), requires_grad=trained)
    else:
        bound = nn.Parameter(torch.full((), torch.nan).expand(shape), requires_grad=trained)
        bound.read = reader  # type: ignore[attr-defined]
    assert bound.shape == shape, "shapes are checked before parameters are bound"
    return bound


def read(parameter: torch.Tensor) -> torch.Tensor:
    """The values of a parameter in float32, from memory or disk."""
    reader: Reader | None = getattr(parameter, "read", None)
    if reader is None:
        return parameter.detach()
    return reader().float()


def is_bound(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "read")


def fill(module: nn.Module, shown: Shown = iter) -> None:
    """Read every bound parameter for good. shown: iterates over them, as a progress bar does."""
    done: dict[int, nn.Parameter] = {}
    for name, parameter in shown(list(module.named_parameters(remove_duplicate=False))):
        if is_bound(parameter):
            if id(parameter) not in done:
                done[id(parameter)] = nn.Parameter(read(parameter).clone(), requires_grad=parameter.requires_grad)
            _set(module, name, done[id(parameter)])


def change(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], exact: str | None = None) -> None:
    """Apply `function` to every matrix of Linear and Embedding layers, to bound ones when they are read.

    exact: last name of the layers that keep their values.
    """
    changed: dict[int, nn.Parameter] = {}
    for name, child in module.named_modules():
        if not isinstance(child, (nn.Linear, nn.Embedding)) or name.rpartition(".")[2] == exact:
            continue
        weight = child.weight
        if id(weight) not in changed:
            changed[id(weight)] = _changed(weight, function)
        child.weight = changed[id(weight)]


def _changed(weight: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Parameter:
    if not is_bound(weight):
        weight.data.copy_(function(weight.data))
        assert isinstance(weight, nn.Parameter)
        return weight
    new = nn.Parameter(weight.data, requires_grad=False)
    new.read = lambda: function(read(weight))  # type: ignore[attr-defined]
    return new


@contextlib.contextmanager
def streamed(module: nn.Module) -> Iterator[None]:
    """While active, a layer's own parameters are read when it is called and dropped when it returns."""
    handles = []
    for child in module.modules():
        bound = {name: p for name, p in child._parameters.items() if p is not None and is_bound(p)}
        if bound:
            handles += _hooks(child, bound)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(child: nn.Module, bound: dict[str, nn.Parameter]) -> list[Any]:
    def load(*_: Any) -> None:
        for name, parameter in bound.items():
            child._parameters[name] = nn.Parameter(read(parameter), requires_grad=False)

    def drop(*_: Any) -> None:
        child._parameters.update(bound)

    return [child.register_forward_pre_hook(load), child.register_forward_hook(drop, always_call=True)]


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, own = name.rpartition(".")
    module.get_submodule(path)._parameters[own] = parameter
