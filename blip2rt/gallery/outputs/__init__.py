"""Where captions are written. The outputs themselves record which pictures are done."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import utf8_name
from ...results import Tag
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
    confidence: float | None = None  # that the first caption is right; None: not computed

    def row(self, timed: bool = False) -> dict[str, object]:
        """Return a JSON object as docs/json.md describes it. timed: include the time, which differs between runs."""
        ms = round(self.ms, 1) if timed else None
        row: dict[str, object] = {
            "image": utf8_name(self.name),
            "caption": self.captions[0],
            "captions": list(self.captions),
        }
        row |= {"score": self.score, "truncated": self.truncated, "model": self.model, "ms": ms}
        return row if self.confidence is None else row | {"confidence": round(self.confidence, 4)}


@dataclass(frozen=True)
class TagDescription(Description):
    """The labels of a picture; its caption is the labels, separated by commas."""

    tags: Sequence[Tag] = ()

    def row(self, timed: bool = False) -> dict[str, object]:
        """Return a JSON object as docs/json.md describes it. timed: include the parents, as printed rows do."""
        row: dict[str, object] = {"image": utf8_name(self.name), "tags": list(map(str, self.tags))}
        row |= {"probabilities": [round(tag.probability, 4) for tag in self.tags]}
        parents = {"parents": [list(tag.parents) for tag in self.tags]} if timed else {}
        return row | parents | {"model": self.model}


class Sink:
    """An output for descriptions."""

    def needs(self, picture: Picture) -> bool | Failure:
        """Return whether the picture still has to be written, or why it cannot be."""
        return True

    def write(self, picture: Picture, description: Description) -> None:
        """Write it completely or not at all. Raises OSError."""
        raise NotImplementedError

    def finish(self, failed: bool) -> None:
        """Bring the output into its final form, unless the run was interrupted. failed: every picture failed."""

    def close(self) -> None:
        """Close files."""
