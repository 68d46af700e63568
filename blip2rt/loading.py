"""Open a bundle: check the settings of `load`, and build a Model with its backend and caches.

Also the functions blip2rt.caption, ask and match, whose model is nano, loaded by the first call.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from . import backends
from .batching import Batching
from .bundle import read
from .bundle.location import locate
from .errors import OptionError, is_number, is_whole
from .image import MAX_PIXELS, ImageSettings
from .model import Model
from .pixels.feature_cache import FeatureCache

if TYPE_CHECKING:
    from .backends.trt.plans import PlanSizes

_shared: Model | None = None
_lock = threading.Lock()


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    backend: str = backends.DEFAULT,
    device: str | None = None,
    threads: int | None = None,
    plan_sizes: PlanSizes | None = None,
    engines: PlanSizes | None = None,
    scaled_jpeg: bool = False,
    max_pixels: int = MAX_PIXELS,
    special_tokens: bool = True,
    color: str = "rgb",
    batching: bool | Batching = False,
    cache_bytes: int = 0,
    trusted_graphs: bool = False,
    run_timeout: float | None = None,
) -> Model:
    """Open a bundle. Graphs are loaded when they are first used.

    bundle: a folder; None or "nano" for the embedded model; or hf://USER/REPOSITORY[@REVISION] for one on the Hugging
        Face Hub, which the first call downloads and later ones open from the cache (blip2rt.bundle.hub).

    backend: "ort" (ONNX Runtime), "core" (the same bundles without ONNX Runtime), "auto" (the faster of these) or "trt"
        (TensorRT, docs/jetson.md; needs a bundle exported for it).
    device: "cuda" for trt, "cpu" for the others; None is the backend's own.
    threads: threads of each operator, not for trt; None uses BLIP2RT_NUM_THREADS, or else every physical core.
    plan_sizes: for trt, the sizes to build plans for (blip2rt.backends.trt.PlanSizes). Building takes minutes, once.
    engines: what plan_sizes was called in 0.1.
    scaled_jpeg: decode large JPEGs at a fraction of their size: faster, slightly different (blip2rt.image).
    max_pixels: largest width times height of an image file; a larger JPEG is decoded at reduced size if it can be
        (blip2rt.image), any other file is an ImageError.
    special_tokens: False treats "<|im_end|>" in a caller's prompt, question or text as plain text, not as that token.
    color: "rgb", or "bgr" for arrays from OpenCV.
    batching: decode the calls of concurrent threads in one batch, and enable `submit`; not for trt. A Batching
        (blip2rt.batching) sets its sizes.
    cache_bytes: size of the cache for repeated images and, with batching, prompt prefixes, which get three quarters.
    trusted_graphs: allow operators that blip2rt-export does not write, for graphs of your own: some end the process.
    run_timeout: seconds that one run of a graph may take, not for trt; None: 60, plus 1 for each MB of its files.

    Raises BundleError (missing, damaged, too new), BackendError (unknown name, no GPU) and OptionError.
    """
    arguments = dict(locals())
    if threads is not None and not is_whole(threads, 1, 1024):
        raise OptionError(f"threads is {threads!r}: give a whole number from 1 to 1024, or leave it out for all cores")
    for name in ("special_tokens", "trusted_graphs"):
        if not isinstance(arguments[name], bool):
            raise OptionError(f"{name} is {arguments[name]!r}: give True or False")
    if run_timeout is not None and not is_number(run_timeout, 1e-3, 1e9):
        raise OptionError(
            f"run_timeout is {run_timeout!r}: give a number of seconds from 0.001 to 1e9, or leave it out"
        )
    if not isinstance(batching, bool | Batching):
        raise OptionError(f"batching is {batching!r}: give True, False or a blip2rt.batching.Batching")
    if batching and not backends.get(backend).batches:
        raise OptionError(f"the backend {backend} decodes each call by itself: give the backend ort, or no batching")
    if not is_whole(cache_bytes, 0, 1 << 50):
        raise OptionError(f"cache_bytes is {cache_bytes!r}: give a number of bytes, or 0 for no cache")
    images = ImageSettings(scaled_jpeg, max_pixels, color)
    folder = locate(bundle)
    opened = replace(read(folder, tensors=True), trusted_graphs=trusted_graphs)
    sizes = Batching() if batching is True else batching or None
    prefix_bytes = cache_bytes - cache_bytes // 4 if sizes and opened.manifest.llm is not None else 0
    shared: dict[str, Any] = {"batching": sizes, "cache_bytes": prefix_bytes or None}
    shared |= {"threads": threads, "run_timeout": run_timeout, "plan_sizes": plan_sizes or engines}
    chosen = backends.create(backend, opened, device=device, **shared)
    cache = FeatureCache(cache_bytes - prefix_bytes)
    reload = partial(load, **{**arguments, "bundle": os.path.abspath(folder)})
    return Model(opened, chosen, images, cache, special_tokens=special_tokens, reload=reload)


def settings_in(args: object) -> dict[str, Any]:
    """The keywords of `load` that a command line gave."""
    names = ("backend", "device", "threads", "scaled_jpeg", "max_pixels", "trusted_graphs", "run_timeout")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


# The module's own model


def close() -> None:
    """Free the memory of the model that caption, ask and match share. The next call loads it again."""
    global _shared
    with _lock:
        closing, _shared = _shared, None
    if closing is not None:
        closing.close()


def _opened() -> Model:
    global _shared
    with _lock:
        if _shared is None:
            _shared = load()
        return _shared


def _shared_call(method: Callable[..., Any]) -> Any:
    """A function that calls a method of the shared model, with its signature and text."""

    def call(*given: Any, **options: Any) -> Any:
        return getattr(_opened(), method.__name__)(*given, **options)

    own = inspect.signature(method)
    call.__signature__ = own.replace(parameters=[*own.parameters.values()][1:])  # type: ignore[attr-defined]
    call.__name__ = call.__qualname__ = method.__name__
    call.__doc__, call.__module__ = method.__doc__, __package__
    return call


if TYPE_CHECKING:  # the signatures are those of the methods
    caption, ask, match = _opened().caption, _opened().ask, _opened().match
else:  # by single names, which the documentation finds
    caption = _shared_call(Model.caption)
    ask = _shared_call(Model.ask)
    match = _shared_call(Model.match)
