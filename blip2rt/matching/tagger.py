"""Labels of images: what the captions and embeddings of images say about a list of labels, and the user's own lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError, check_probability, is_whole
from ..native import native
from ..results import Tag
from .evidence import Evidence

if TYPE_CHECKING:
    from ..backends import Floats
    from ..bundle.manifest import Calibration
    from ..native import Labels


class Tagger:
    """Labels images from one list. Any thread may use it."""

    def __init__(
        self, evidence: Evidence, labels: Labels, calibration: Calibration, top: int, threshold: float
    ) -> None:
        """top: most labels of an image. threshold: their least probability. Raises OptionError."""
        if not is_whole(top, 1, None):
            raise OptionError(f"top is {top!r}: give a number of labels, 1 or more")
        check_probability(threshold, "threshold")
        self._evidence, self._labels = evidence, labels
        self._native = native.Tagger(labels, calibration, min(top, len(labels)), threshold)
        self._names = [(name, tuple(parents)) for name, parents, _ in labels.entries]

    def tags(self, vision_features: Floats) -> list[list[Tag]]:
        """vision_features (B, N, C) -> the labels of each image, likeliest first"""
        images, labels = self._evidence.image_embeds(vision_features), self._evidence.label_embeds(self._labels)
        captions = self._captions(vision_features) if self._native.reads_captions else [""] * len(images)
        found = [self._native.tags(image, labels, caption) for image, caption in zip(images, captions, strict=True)]
        return [[Tag(self._names[i][0], chance, self._names[i][1]) for i, chance in tags] for tags in found]

    def _captions(self, vision_features: Floats) -> list[str]:
        """vision_features (B, N, C) -> the caption of each image, as the bundle writes it by default"""
        pipeline = self._evidence.pipeline
        task, prefix_embeds = pipeline.task(), self._evidence.caption_prefix(vision_features)
        settings = task.guided(task.settings, [vision_features])
        texts = pipeline.language.generate(prefix_embeds, [task.prompt] * len(prefix_embeds), settings)
        return [best[0].text for best in texts]


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
