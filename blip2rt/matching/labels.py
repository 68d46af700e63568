"""Lists of labels: the user's own, or the everyday ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError
from ..native import native

if TYPE_CHECKING:
    from ..native import Labels


def as_labels(labels: Sequence[str] | Labels | None) -> Labels:
    """Texts, as in ["dog", "animal|cat"], or None -> their list, or the everyday one. Raises OptionError."""
    if labels is None:
        return native.Labels.everyday()
    if isinstance(labels, str):
        raise OptionError(f"labels is {labels!r}: give a list of texts, as in ['dog', 'cat']")
    return native.Labels(labels) if isinstance(labels, Sequence) else labels


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read a file with one label a line; empty lines and those that begin with # are skipped. Raises OptionError."""
    name = os.fspath(path)
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise OptionError(f"cannot read {name!r}: {error.strerror or error}; give a file of labels") from None
    except UnicodeDecodeError:
        raise OptionError(f"{name!r} is not UTF-8: give a text file with one label a line") from None
    return as_labels([line for line in lines if line.strip() and not line.startswith("#")])
