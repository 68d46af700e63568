"""Checks of output paths before anything is written. A picture is never overwritten, whatever its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..bundle.regular_files import require_regular
from ..errors import OptionError
from ..untrusted.image_format import EXTENSIONS, format_of, read_head


def write_problem(target: str) -> str:
    """Return why a file must not be written, or ""."""
    if os.path.isdir(target):
        return f"{target!r} is a folder"
    folder = os.path.dirname(target)
    if folder and not os.path.isdir(folder):
        return f"{target!r} cannot be written: folder {folder!r} does not exist"
    try:
        picture = os.path.isfile(target) and format_of(read_head(target))
    except OSError as error:
        return f"cannot read {target!r}: {error.strerror}"
    return f"{target!r} is a picture, which is never overwritten" if picture else ""


def sidecar_problem(target: str, folder: str) -> str:
    """Return why a file next to a picture must not be written, or "". folder: where its picture was found, or ""."""
    try:
        require_regular(target, follow=False)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EISDIR:
            return f"{target!r} cannot be written: {error.strerror}"
    if folder and not Path(os.path.realpath(os.path.dirname(target))).is_relative_to(os.path.realpath(folder)):
        return f"{target!r} is behind a link that leads out of {folder!r}"
    return write_problem(target)


def check_writable(target: str) -> None:
    """Raise OptionError for a file that must not be written."""
    problem = write_problem(target)
    if problem:
        raise OptionError(f"{problem}: give another file")


def check_empty(folder: Path, problem: str, allowed: str | None = None) -> None:
    """Raise OptionError for a folder that is not empty.

    problem: the message then, with its fix. allowed: a name that an earlier killed run may have left there.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is not a folder: give another one")
    if folder.exists() and any(path.name != allowed for path in folder.iterdir()):
        raise OptionError(f"{folder} is {problem}")


def normalized_extension(extension: str) -> str:
    """Return the extension of a sidecar with its dot. Raises OptionError for a path or the extension of a picture."""
    if not extension.strip(".") or os.path.basename(extension) != extension:
        raise OptionError(f"caption_extension is {extension!r}: give an extension such as .txt or .caption")
    extension = extension if extension.startswith(".") else f".{extension}"
    if extension.lower() in EXTENSIONS:
        raise OptionError(f"caption_extension is {extension!r}, an extension of pictures: give .txt or .caption")
    return extension
