"""blip2rt: BLIP-2 on the edge.

    import blip2rt

    blip2rt.caption("photo.jpg")
    blip2rt.ask("photo.jpg", "what colour is the dog?")
    blip2rt.match("photo.jpg", "a dog on a beach")

    model = blip2rt.load("my_bundle")  # threads and backends: help(blip2rt.load)
    model.caption(["a.jpg", "b.jpg"], num_beams=5)  # options: help(blip2rt.Options)

The functions use the embedded model, "nano" (pip install 'blip2rt[nano]'), loaded by the first call and ended by
blip2rt.close(). The import itself loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .errors import BackendError, Blip2rtError, BundleError, CapabilityError, ImageError, OptionError
    from .language import Chat
    from .loading import ask, caption, close, load, match
    from .model import Model
    from .options import Options
    from .results import Match, Scored

__all__ = ["BackendError", "Blip2rtError", "BundleError", "CapabilityError", "Chat", "ImageError", "Match", "Model"]
__all__ += ["OptionError", "Options", "Scored", "ask", "caption", "close", "load", "match"]

_MODULES = {"Chat": "language", "Match": "results", "Model": "model", "Options": "options", "Scored": "results"}
_MODULES |= {"load": "loading", **dict.fromkeys(("ask", "caption", "close", "match"), "loading")}


def __getattr__(name: str) -> Any:
    """Import the other public names at first use."""
    if name in __all__:
        if name in _MODULES:
            from .native import require_processor

            require_processor()
        return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
