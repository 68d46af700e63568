"""Errors for the user's eyes: one line that names the value, the choices and the fix.

Knows nothing of the rest of the package, so that every module may raise them.
"""

from __future__ import annotations

import re

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # controls, and turns of direction


def printable(text: str) -> str:
    """A stranger's text with what would steer a terminal written as escapes; line ends and tabs stay."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


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


class BackendError(Blip2rtError):
    """A backend that is unknown or not installed, or whose engine failed."""
