"""Errors for the user's eyes: one line that names the value, the choices and the fix.

Knows nothing of the rest of the package, so that every module may raise them.
"""

from __future__ import annotations


class Blip2rtError(Exception):
    """Base of every error that blip2rt raises for the user's input; its message is always a single line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines() if line.strip()))


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
