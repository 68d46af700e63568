"""Where a picture shows each word of its caption, by the queries' attention.

A query counts for a word by how much less likely the word is without it: with the mean of all queries in its place. The
map of a word is the mean of the queries' cross-attention, weighted by that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..bundle import ATTENTION, GENERATIVE
from ..errors import CapabilityError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from ..pipeline import Pipeline


def word_attention(pipeline: Pipeline, image: NDArray[np.uint8], text: str) -> list[tuple[str, Floats]]:
    """RGB image of Pipeline.prepare, caption -> each word and its map (rows, columns) of patches, whose sum is 1."""
    words, language, backend = text.split(), pipeline.language, pipeline.backend
    if not words:
        raise OptionError("text has no words: give a caption of the image")
    features = pipeline.vision_features([image])
    question = pipeline.question_tokens([language.caption_prompt(None).whole])
    maps = backend.attention_maps(features, question)[0]  # (Q, rows, columns)
    prefix_embeds = backend.prefix_embeds(features, question)  # (1, Q, D)
    queries = len(maps)
    without = np.repeat(prefix_embeds, queries + 1, axis=0)  # the last lacks none
    without[range(queries), range(queries)] = prefix_embeds[0].mean(0)
    beginnings = [" ".join(words[: i + 1]) for i in range(len(words))]
    images = np.repeat(np.arange(queries + 1), len(words)).tolist()
    scores = language.likelihoods(without, images, beginnings * (queries + 1), complete=False)
    of_words = np.diff(scores.reshape(queries + 1, len(words)), axis=1, prepend=0)  # log p of each word
    weights = np.maximum(of_words[-1] - of_words[:-1], 0) + 1e-9  # (Q, words)
    attention = np.tensordot(weights.T.astype(np.float32), maps, 1)  # (words, rows, columns)
    return list(zip(words, attention / attention.sum((1, 2), keepdims=True), strict=True))


def require_maps(pipeline: Pipeline) -> None:
    """Raise CapabilityError if the bundle has no attention maps."""
    pipeline.require(GENERATIVE, "explain a caption")
    if not pipeline.bundle.has(ATTENTION):
        raise CapabilityError(
            f"bundle {pipeline.bundle.manifest.name!r} cannot explain a caption: it lacks attention; export it again "
            "for ONNX Runtime with this version"
        )
