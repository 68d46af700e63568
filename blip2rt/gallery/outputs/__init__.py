"""Where captions are written. The outputs themselves record which pictures are done."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...errors import utf8_name
from ..sources import Failure, Picture

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # writing any other picture would fail too


@dataclass(frozen=True)
class Description:
    """The captions of a picture."""

    name: str
    captions: Sequence[str]
    score: float  # of the first caption; see language.Scored
    model: str
    ms: float = 0.0  # its share of the graphs' time
    truncated: bool = False  # the first caption; see language.Scored

    def row(self, timed: bool = False) -> dict[str, object]:
        """Return a JSON object as docs/json.md describes it. timed: include the time, which differs between runs."""
        ms = round(self.ms, 1) if timed else None
        row = {"image": utf8_name(self.name), "caption": self.captions[0], "captions": list(self.captions)}
        return row | {"score": self.score, "truncated": self.truncated, "model": self.model, "ms": ms}


class Sink(Protocol):
    """An output for descriptions."""

    def needs(self, picture: Picture) -> bool | Failure:
        """Return whether the picture still has to be written, or why it cannot be."""

    def write(self, picture: Picture, description: Description) -> None:
        """Write it completely or not at all. Raises OSError."""

    def finish(self, failed: bool) -> None:
        """Bring the output into its final form, unless the run was interrupted. failed: every picture failed."""

    def close(self) -> None:
        """Close files."""
