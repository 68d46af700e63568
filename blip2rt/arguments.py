"""Arguments of a model's methods: one thing or several as lists; signatures for help(), and as coroutines."""

import functools
import inspect
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

from .errors import ImageError, OptionError
from .options import Options

Method = TypeVar("Method", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")

_ALIASES = {
    "Inputs": "ImageLike | Sequence[ImageLike]",
    "Images": "Sequence[ImageLike]",
    "Many": "Iterable[ImageLike]",
    "Texts": "str | Sequence[str]",
    "Labels": "Sequence[str | Label] | None",
    "Floats": "numpy.ndarray",
}
_DEFAULTS = {**asdict(Options()), "on_timeout": "raise", "scores": False, "raw": False}  # None for others


def as_list(images: Any) -> tuple[list[Any], bool]:
    """One image or several -> a list, and whether it was one. An array of four axes is a batch."""
    if hasattr(images, "__array__") and len(getattr(images, "shape", ())) == 4:
        return list(images), False
    if isinstance(images, list | tuple | Iterator) and not is_file(images):
        return list(images), False
    return [images], True


def is_file(images: Any) -> bool:
    """Whether it is an open file: an iterator, but one image."""
    return hasattr(images, "read")


def one_by_one(images: Any) -> None:
    """Raise ImageError unless `images` is an iterable of images."""
    one = isinstance(images, str | bytes | os.PathLike) or is_file(images)
    if one or not isinstance(images, Iterable):
        raise ImageError(f"caption_each takes an iterable, not {type(images).__name__}: give a list, or call caption")


def texts_of(texts: Any, name: str) -> tuple[list[str], bool]:
    """One text or several -> a list, and whether it was one. Raises OptionError unless all are str."""
    many, one = as_list(texts)
    wrong = sorted({type(text).__name__ for text in many if not isinstance(text, str)})
    if wrong:
        raise OptionError(f"{name} contain {', '.join(wrong)}: give a str or a list of str")
    return many, one


def pairs(images: Any, texts: Any, name: str) -> tuple[list[Any], list[str], bool]:
    """Images and texts -> lists of equal length, and whether both were one. A single one is repeated for a list."""
    many_images, one_image = as_list(images)
    many_texts, one_text = texts_of(texts, name)
    if one_image and not one_text:
        many_images *= len(many_texts)
    if one_text and not one_image:
        many_texts *= len(many_images)
    if len(many_images) != len(many_texts):
        raise OptionError(f"{len(many_images)} images and {len(many_texts)} {name}: give equally many")
    return many_images, many_texts, one_image and one_text


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
