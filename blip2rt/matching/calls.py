"""What a Model does with images and texts without generating: match, judge, label and embed them.

Checks what callers pass, and returns one result for one image and a list for a list. matcher.py computes the results.
"""

# mypy: disable-error-code="overload-overlap"
# A str is a sequence of str: the first signature that fits counts.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from ..arguments import as_list, awaited, pairs, shown, texts_of
from ..bundle import IMAGE_EMBED, RETRIEVAL, TEXT_EMBED, VISION
from ..errors import ImageError, OptionError, check_probability
from ..image import ImageLike
from ..native import native
from ..pipeline import Pipeline
from ..results import Match, MatchWeights, Tag
from .matcher import Matcher

if TYPE_CHECKING:
    from ..backends import Floats
    from ..native import Labels as LabelList

    Images: TypeAlias = Sequence[ImageLike]
    Inputs: TypeAlias = ImageLike | Images
    Texts: TypeAlias = str | Sequence[str]
    Labels: TypeAlias = Sequence[str] | LabelList | None
    No: TypeAlias = Literal[False]


class MatchingCalls:
    """The methods of Model that compare images with texts. Model documents their errors."""

    pipeline: Pipeline
    matcher: Matcher

    @overload
    def match(self, images: ImageLike, texts: str, *, keep_going: No = False) -> Match: ...
    @overload
    def match(self, images: Inputs, texts: Texts, *, keep_going: No = False) -> list[Match]: ...
    @overload
    def match(self, images: ImageLike, texts: str, *, keep_going: bool) -> Match | ImageError: ...
    @overload
    def match(self, images: Inputs, texts: Texts, *, keep_going: bool) -> list[Match | ImageError]: ...
    @shown("Match | list[Match]")
    def match(self, images: Inputs, texts: Texts, *, keep_going: bool = False) -> Any:
        """Image and text -> Match. Lists are taken pairwise; one image or one text goes with all of a list.

        Texts too long for the model are cut. keep_going: return a bad image's ImageError in place of its match.
        """
        self.pipeline.require(RETRIEVAL, "match")
        many_images, many_texts, single = pairs(images, texts, "texts")
        _check_words(many_texts)

        def matches(numbers: list[int], features: Floats) -> list[Match]:
            return self.matcher.match(features, [many_texts[i] for i in numbers])

        found = self.pipeline.map_features(many_images, keep_going, matches)
        return found[0] if single else found

    @overload
    def sees(self, images: ImageLike, statements: str, *, threshold: float = 0.5) -> bool: ...
    @overload
    def sees(self, images: Inputs, statements: Texts, *, threshold: float = 0.5) -> list[bool]: ...
    @shown("bool | list[bool]")
    def sees(self, images: Inputs, statements: Texts, *, threshold: float = 0.5) -> Any:
        """Image and statement -> whether it is true. Lists are taken pairwise, as in `match`.

        A statement is a phrase ("a dog"), a sentence, or a question whether something is there. It is true if its
        calibrated probability is above the threshold; `match` returns the probability. Raises CapabilityError if the
        bundle has no calibration.
        """
        self.pipeline.judge.require_statements("judge what it sees")
        check_probability(threshold, "threshold")
        many_images, many_texts, single = pairs(images, statements, "statements")
        _check_words(many_texts)

        def are_true(numbers: list[int], features: Floats) -> list[bool]:
            found = self.matcher.judge(features, [many_texts[i] for i in numbers])
            return [bool(probability > threshold) for probability in found]

        answers = self.pipeline.map_features(many_images, False, are_true)
        return answers[0] if single else answers

    @overload
    def tag(
        self, images: ImageLike, labels: Labels = ..., *, top: int = ..., threshold: float = ..., keep_going: No = ...
    ) -> list[Tag]: ...
    @overload
    def tag(
        self, images: Images, labels: Labels = ..., *, top: int = ..., threshold: float = ..., keep_going: No = ...
    ) -> list[list[Tag]]: ...
    @overload
    def tag(
        self, images: ImageLike, labels: Labels = ..., *, top: int = ..., threshold: float = ..., keep_going: bool
    ) -> list[Tag] | ImageError: ...
    @overload
    def tag(
        self, images: Images, labels: Labels = ..., *, top: int = ..., threshold: float = ..., keep_going: bool
    ) -> list[list[Tag] | ImageError]: ...
    @shown("list[Tag] | list[list[Tag]]")
    def tag(
        self, images: Inputs, labels: Labels = None, *, top: int = 10, threshold: float = 0.3, keep_going: bool = False
    ) -> Any:
        """Image -> labels that it shows, list of images -> a list of labels for each, likeliest first.

        labels: texts, as in ["dog", "animal|cat"], of any number; None is about 1,200 everyday ones.
        top: most labels of an image. threshold: least calibrated probability.
        keep_going: return a bad image's ImageError in place of its labels.
        Raises CapabilityError if the bundle has no calibration.
        """
        tagger = self.matcher.tagger(labels, top, threshold)
        many, single = as_list(images)
        found = self.pipeline.map_features(many, keep_going, lambda _, features: tagger.tags(features))
        return found[0] if single else found

    @shown()
    def vision_features(self, images: Inputs) -> Floats:
        """Image -> (N, C) float32, list of images -> (B, N, C): match_features takes them, without the encoder."""
        many, single = as_list(images)
        features = self.pipeline.stack(VISION, self.pipeline.map_features(many, False, lambda _, features: features))
        return features[0] if single else features

    @overload
    def embed_image(self, images: Inputs, *, keep_going: No = False) -> Floats: ...
    @overload
    def embed_image(self, images: ImageLike, *, keep_going: bool) -> Floats | ImageError: ...
    @overload
    def embed_image(self, images: Images, *, keep_going: bool) -> list[Floats | ImageError]: ...
    @shown("numpy.ndarray")
    def embed_image(self, images: Inputs, *, keep_going: bool = False) -> Any:
        """Image -> (Q, E) float32, list of images -> (B, Q, E): an embedding of unit length for each query.

        keep_going: return a list of (Q, E) for a list, with a bad image's ImageError in place of its embedding.
        """
        self.pipeline.require((IMAGE_EMBED,), "embed_image")
        many, single = as_list(images)
        found = self.pipeline.map_features(many, keep_going, lambda _, features: self.matcher.image_embeds(features))
        if single:
            return found[0]
        return found if keep_going else self.pipeline.stack(IMAGE_EMBED, found)

    @shown()
    def embed_text(self, texts: Texts) -> Floats:
        """Text -> (E,) float32 of unit length, list of texts -> (B, E). Texts too long for the model are cut."""
        self.pipeline.require((TEXT_EMBED,), "embed_text")
        many, single = texts_of(texts, "texts")
        embeds = self.matcher.text_embeds(many) if many else self.pipeline.stack(TEXT_EMBED, [])
        return embeds[0] if single else embeds

    @property
    def match_weights(self) -> MatchWeights:
        """How Match.score weighs its parts."""
        return self.matcher.weights

    # Awaitable: the work runs in a thread

    amatch = awaited(match)
    asees = awaited(sees)
    atag = awaited(tag)
    aembed_image = awaited(embed_image)
    aembed_text = awaited(embed_text)


def _check_words(texts: Sequence[str]) -> None:
    if not all(map(native.has_words, texts)):
        raise OptionError("a text has no words: say what the image may show, as in 'a dog on grass'")
