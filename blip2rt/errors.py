"""Errors for users: one line that names the value, the choices and the fix. Every module may raise them."""

import contextlib
import operator
import re
from collections.abc import Iterator
from typing import Any

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # controls, direction marks

_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # a byte of a file name, by surrogateescape


def printable(text: str) -> str:
    """An untrusted text with terminal control characters escaped; line breaks and tabs stay. JSON stays JSON."""
    return _HIDDEN.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] < " " else f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """A text with tabs, line breaks, control characters and invalid bytes escaped, for output on one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in utf8_name(text))


def utf8_name(name: str) -> str:
    """A file name as it is printed and written: its bytes that are not UTF-8 become \\xNN."""
    return _NOT_UTF8.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", name)


class Blip2rtError(Exception):
    """Base of all errors about the user's input; the message is a single line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(line.strip() for line in message.splitlines() if line.strip())))


class ImageError(Blip2rtError):
    """An image that cannot be read or has the wrong shape or type."""


class BundleError(Blip2rtError):
    """A bundle that is missing, altered, too new, or cannot be written."""


class OptionError(Blip2rtError):
    """Invalid options, arguments or environment variables; all faults are named at once."""


class DeadlineError(Blip2rtError, TimeoutError):
    """`max_time` passed before the first word of a text."""


class CapabilityError(Blip2rtError):
    """A call that needs components which the bundle lacks."""


class GalleryError(Blip2rtError):
    """An index that is missing, damaged, or made by another model."""


class BackendError(Blip2rtError):
    """A backend that is unknown, not installed, or failed."""


_UNCHANGED = (Blip2rtError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, ModuleNotFoundError)


@contextlib.contextmanager
def boundary(what: str, kind: type[Blip2rtError] = Blip2rtError) -> Iterator[None]:
    """Turn any exception about an untrusted file into an error of one line, "WHAT: the reason".

    Rust panics, which are no Exception, are caught too. Our own errors, Ctrl-C, lack of memory and missing packages
    pass unchanged.
    """
    try:
        yield
    except _UNCHANGED:
        raise
    except BaseException as error:  # noqa: BLE001
        raise kind(f"{what}: {reason(error)}") from error


@contextlib.contextmanager
def collected(faults: list[str]) -> Iterator[None]:
    """Append an error of ours to `faults` instead of raising it, so that all faults can be reported at once."""
    try:
        yield
    except Blip2rtError as error:
        faults.append(str(error))


@contextlib.contextmanager
def names_file(path: object) -> Iterator[None]:
    """Add `path` to an OSError that names no file, as write() raises on a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def reason(error: BaseException) -> str:
    """The first line of an error's message, shortened; its type if there is none."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether `value` is a number (numpy's count, bool does not) from `low` to `high`."""
    try:
        return not isinstance(value, bool | str) and low <= float(value) <= high
    except (TypeError, ValueError):
        return False


def check_probability(value: Any, name: str) -> None:
    """Raise OptionError unless `value` is a number from 0 to 1."""
    if not is_number(value, 0, 1):
        raise OptionError(f"{name} is {value!r}: give a probability from 0 to 1")


def is_whole(value: Any, low: int, high: int | None) -> bool:
    """Whether `value` is a whole number (numpy's count, bool does not) from `low` to `high`."""
    if isinstance(value, bool):
        return False
    try:
        number = operator.index(value)
    except TypeError:
        return False
    return number >= low and (high is None or number <= high)
