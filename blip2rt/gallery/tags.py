"""`blip2rt tag`: pictures -> labels -> the outputs of captions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .captions import Job, Run, execute
from .outputs import Description, Sink, TagDescription
from .outputs.tables import TAG_COLUMNS

if TYPE_CHECKING:
    from ..model import Model
    from ..native import Labels
    from ..pipeline import RGB
    from ..results import Tag

BATCH_SIZE = 8


@dataclass(frozen=True)
class TagSettings:
    """Which labels to choose from, and how many. file: where the labels are from; None: the everyday ones."""

    labels: Labels | None
    file: str | None
    top: int
    threshold: float

    @property
    def flags(self) -> str:
        """The flags that shape the labels, quoted for a shell."""
        given = {"--labels": self.file, "--top": f"{self.top}", "--threshold": f"{self.threshold:g}"}
        return shlex.join([word for flag, value in given.items() if value for word in (flag, value)])


def tag(model: Model, job: Job, tags: TagSettings) -> int:
    """Label pictures and return the exit code."""
    return execute(_TagRun(model, job, tags))


class _TagRun(Run):
    """Labels pictures."""

    verb = "labelled"
    columns = TAG_COLUMNS

    def __init__(self, model: Model, job: Job, tags: TagSettings) -> None:
        super().__init__(model, job, tags.flags)
        self._tagger = model.matcher.tagger(tags.labels, tags.top, tags.threshold)

    def compute(self, images: list[RGB], first_image: int) -> Sequence[list[Tag]]:
        return self.model.pipeline.map_features(images, False, lambda _, features: self._tagger.tags(features))

    def description(self, name: str, result: Any) -> Description:
        return TagDescription(name, [", ".join(result)], 0.0, self.name, tags=result)

    def open_xmp(self, overwrite: bool, replace_extension: bool) -> Sink:
        from .outputs.xmp import XmpKeywords

        return XmpKeywords(overwrite, replace_extension)
