"""blip2rt: BLIP-2 on the edge.

    import blip2rt

    blip2rt.caption("photo.jpg")
    blip2rt.ask("photo.jpg", "what colour is the dog?")
    blip2rt.match("photo.jpg", "a dog on a beach")

    model = blip2rt.load("my_bundle")  # threads and backends: help(blip2rt.load)
    model.caption(["a.jpg", "b.jpg"], num_beams=5)  # options: help(blip2rt.Options)

The functions use the embedded model, "nano", loaded at the first call. Importing loads nothing else.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import BackendError, Blip2rtError, BundleError, CapabilityError, ImageError, OptionError
    from .language import Chat, Scored
    from .options import Options
    from .pipeline import Match, Model, load

__version__ = "0.1.0"
__all__ = [
    "BackendError", "Blip2rtError", "BundleError", "CapabilityError", "Chat", "ImageError", "Match", "Model",
    "OptionError", "Options", "Scored", "ask", "caption", "load", "match",
]  # fmt: skip

_default: Model | None = None
_lock = threading.Lock()


def caption(images: Any, **options: Any) -> Any:
    """Captions one image (-> str) or a list of images (-> list of str); see Model.caption."""
    return _default_model().caption(images, **options)


def ask(images: Any, questions: Any, **options: Any) -> Any:
    """Answers a question about an image; see Model.ask."""
    return _default_model().ask(images, questions, **options)


def match(images: Any, texts: Any) -> Any:
    """How well a text describes an image; see Model.match."""
    return _default_model().match(images, texts)


def _default_model() -> Model:
    """The embedded model, loaded once a process."""
    global _default
    with _lock:
        if _default is None:
            from .pipeline import load

            _default = load()
    return _default


def __getattr__(name: str) -> Any:
    """The other public names, imported when they are first asked for."""
    if name in ("Chat", "Scored"):
        return getattr(importlib.import_module(f"{__name__}.language"), name)
    if name == "Options":
        return importlib.import_module(f"{__name__}.options").Options
    if name in ("Match", "Model", "load"):
        return getattr(importlib.import_module(f"{__name__}.pipeline"), name)
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.errors"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
