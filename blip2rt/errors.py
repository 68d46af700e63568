"""Errors for the user's eyes: one line that names the value, the choices and the fix.

Knows nothing of the rest of the package, so that every module may raise them.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterator
from typing import Any

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # controls, and turns of direction


def printable(text: str) -> str:
    """A stranger's text with what would steer a terminal written as escapes; line ends and tabs stay."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """A text with its tabs, line ends and controls as escapes, for a line of its own."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode() for c in text
    )


class Blip2rtError(Exception):
    """Base of every error that blip2rt raises for the user's input; its message is always a single line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(line.strip() for line in message.splitlines() if line.strip())))


class ImageError(Blip2rtError):
    """An image that cannot be read or has the wrong form."""


class BundleError(Blip2rtError):
    """A bundle that is missing, altered, too new, or cannot be written."""


class OptionError(Blip2rtError):
    """One or more options, arguments or environment variables that make no sense; all faults are named at once."""


class CapabilityError(Blip2rtError):
    """The bundle lacks the components that a call needs."""


class GalleryError(Blip2rtError):
    """An index that is missing, damaged, or another model's."""


class BackendError(Blip2rtError):
    """A backend that is unknown or not installed, or whose engine failed."""


_PASSED = (Blip2rtError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, ModuleNotFoundError)


@contextlib.contextmanager
def boundary(what: str, kind: type[Blip2rtError] = Blip2rtError) -> Iterator[None]:
    """Turn whatever is raised at a stranger's file into an error of one line, "WHAT: the reason".

    A panic of Rust is no Exception, and is caught too. Errors of ours, Ctrl-C, a lack of memory and a package that is
    missing stay what they are.
    """
    try:
        yield
    except _PASSED:
        raise
    except BaseException as error:  # noqa: BLE001
        raise kind(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The first line of what an error says, cut; its type where it says nothing."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]


def is_whole(value: Any, low: int, high: int | None) -> bool:
    """Whether `value` is a whole number (numpy's count, bool does not) from `low` to `high`."""
    if isinstance(value, bool):
        return False
    try:
        number = operator.index(value)
    except TypeError:
        return False
    return number >= low and (high is None or number <= high)
