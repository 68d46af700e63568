"""Signatures of methods: written out for help() and notebooks, where the code takes **options, and as coroutines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

from .options import Options

Method = TypeVar("Method", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")

_ALIASES = {
    "Inputs": "ImageLike | Sequence[ImageLike]",
    "Images": "Sequence[ImageLike]",
    "Many": "Iterable[ImageLike]",
    "Texts": "str | Sequence[str]",
    "Floats": "numpy.ndarray",
}
_DEFAULTS = {**asdict(Options()), "on_timeout": "raise", "scores": False, "raw": False}  # None for others


class _Text(str):
    """A type's text, shown without quotation marks."""

    __repr__ = str.__str__


def shown(result: str = "", *options: Any) -> Callable[[Method], Method]:
    """Write out the types of a method in its signature.

    result: the type returned, where the code says Any. options: TypedDicts that describe **options.
    """

    def add(method: Method) -> Method:
        own = inspect.signature(method)
        parameters = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        for name, hint in (item for keywords in options for item in keywords.__annotations__.items()):
            text, default = getattr(hint, "__forward_arg__", hint), _DEFAULTS.get(name)
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=text))
        typed = [each.replace(annotation=_plain(each.annotation)) for each in parameters]
        returned = _plain(result or own.return_annotation)
        method.__signature__ = own.replace(parameters=typed, return_annotation=returned)  # type: ignore[attr-defined]
        return method

    return add


def _plain(annotation: Any) -> Any:
    return _Text(_ALIASES.get(annotation, annotation)) if isinstance(annotation, str) else annotation


def awaited(method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The method as a coroutine function: its work runs in a thread."""

    @functools.wraps(method)
    async def awaited(*given: P.args, **options: P.kwargs) -> T:
        import asyncio  # slow to import

        return await asyncio.to_thread(method, *given, **options)

    return awaited
