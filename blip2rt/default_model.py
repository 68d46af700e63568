"""The model of blip2rt.caption, ask and match: nano, loaded by the first call."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .loading import load
from .model import Model

Function = TypeVar("Function", bound=Callable[..., Any])
_model: Model | None = None
_lock = threading.Lock()


def close() -> None:
    """Free the memory of the model that caption, ask and match share. The next call loads it again."""
    global _model
    with _lock:
        closing, _model = _model, None
    if closing is not None:
        closing.close()


def _opened() -> Model:
    global _model
    with _lock:
        if _model is None:
            _model = load()
        return _model


def _like(method: Callable[..., Any]) -> Callable[[Function], Function]:
    """Give a function the signature and the text of the method that it calls."""

    def add(function: Function) -> Function:
        own = inspect.signature(method)
        without_self = list(own.parameters.values())[1:]
        function.__signature__ = own.replace(parameters=without_self)  # type: ignore[attr-defined]
        function.__doc__, function.__module__ = method.__doc__, __package__
        return function

    return add


if TYPE_CHECKING:  # the signatures are those of the methods
    caption, ask, match = _opened().caption, _opened().ask, _opened().match
else:

    @_like(Model.caption)
    def caption(images, **options):
        """Caption an image (-> str) or a list of images (-> list of str); see Model.caption."""
        return _opened().caption(images, **options)

    @_like(Model.ask)
    def ask(images, questions, **options):
        """Answer a question about an image; see Model.ask."""
        return _opened().ask(images, questions, **options)

    @_like(Model.match)
    def match(images, texts, **options):
        """Score how well a text describes an image; see Model.match."""
        return _opened().match(images, texts, **options)
