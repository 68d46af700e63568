"""The public interface: `load` opens a bundle, and its `Model` captions, answers and matches.

Checks what callers pass, and returns one result for one image and a list for a list. pipeline.py has the data path.
"""

# mypy: disable-error-code="overload-overlap"
# A str is a sequence of str, and 1 is an int: the first signature that fits counts.

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from . import bundle as contract
from .errors import ImageError, OptionError, check_probability
from .feature_cache import FeatureCache
from .image import ImageLike, ImageSettings
from .language import Chat
from .matching import Matcher, require_maps, word_attention
from .one_or_many import as_list, one_by_one, pairs, texts_of
from .options import AskOptions, CallOptions, CaptionOptions, Options, StreamOptions, TextOptions, check_call, merge
from .pipeline import GenerationTask, Pipeline
from .requests import Answer, Request, submit
from .results import Match, MatchWeights, Scored, Stopwatch, Tag, shaped, too_late
from .signatures import awaited, shown
from .text import Prompt

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .backends import Backend, Floats
    from .bundle import Bundle
    from .matching.labels import Label

    Images: TypeAlias = Sequence[ImageLike]
    Inputs: TypeAlias = ImageLike | Images
    Many: TypeAlias = Iterable[ImageLike]
    Texts: TypeAlias = str | Sequence[str]
    One: TypeAlias = Literal[1]
    No: TypeAlias = Literal[False]


class Model:
    """A loaded bundle. Any thread may call any method.

    One image (or text) gives one result, a list gives a list; blip2rt.image lists what an image may be.
    Methods raise ImageError for a bad image, OptionError for bad options and texts (all faults at once),
    CapabilityError if the bundle lacks the components, and BackendError if the backend fails.

    `pipeline` and `matcher` hold the single steps. A pickled model is loaded again from its folder. `with` closes it.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        images: ImageSettings | None = None,
        cache: FeatureCache | None = None,
        *,
        special_tokens: bool = True,
        reload: Callable[[], Model] | None = None,
    ) -> None:
        """reload: loads the same model in the process that unpickles it."""
        self.bundle = bundle
        self.pipeline = pipeline = Pipeline(bundle, backend, images, cache, special_tokens)
        self.matcher = matcher = Matcher(pipeline)
        self._reload = reload
        pipeline.confidence = matcher.confidence if matcher.rates_captions else None
        pipeline.judge = matcher.judge if matcher.is_calibrated and bundle.has(*contract.GENERATIVE) else None
        # The single steps: checked options, decoded images, and what the graphs make of them.
        self.task, self.prepare, self.generate = pipeline.task, pipeline.prepare, pipeline.generate
        self.features, self.embed, self.embed_features = pipeline.vision_features, matcher.embed, matcher.image_embeds
        self.match_features, self.match_scores, self.itm_logits = matcher.match, matcher.scores, matcher.itm_logits
        self.likelihoods, self.caption_prefix = matcher.likelihoods, matcher.caption_prefix

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()]]:
        if self._reload is None:
            raise TypeError("only a model from blip2rt.load can be pickled")
        return self._reload, ()

    def __repr__(self) -> str:
        manifest = self.bundle.manifest
        return f"<blip2rt.Model {manifest.name!r} for {manifest.target}, of {self.bundle.path}>"

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the graphs' memory. Later calls raise BackendError; closing again does nothing."""
        self.pipeline.backend.close()

    def warm_up(self) -> None:
        """Load every graph and run it once, so that the first call is as fast as later ones."""
        spec = self.bundle.manifest.image
        image = np.zeros((spec.height, spec.width, 3), np.uint8)
        if self.bundle.has(*contract.GENERATIVE):
            self.caption(image, max_new_tokens=2)
        if self.bundle.has(*contract.RETRIEVAL):
            self.match(image, "a photo")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> the caption that they spell. Raises CapabilityError without a language model."""
        self.pipeline.require(contract.GENERATIVE, "decode")
        return self.pipeline.language.decode(token_ids)

    @overload
    def caption(self, images: ImageLike, *, num_captions: One = 1, **options: Unpack[CaptionOptions]) -> Scored: ...
    @overload
    def caption(self, images: Images, *, num_captions: One = 1, **options: Unpack[CaptionOptions]) -> list[Scored]: ...
    @overload
    def caption(self, images: ImageLike, *, num_captions: int, **options: Unpack[CaptionOptions]) -> list[Scored]: ...
    @overload
    def caption(
        self, images: Images, *, num_captions: int, **options: Unpack[CaptionOptions]
    ) -> list[list[Scored]]: ...
    @overload
    def caption(self, images: Inputs, *, on_timeout: None, **options: Unpack[CaptionOptions]) -> Any: ...
    @shown("Scored | list[Scored] | list[list[Scored]]", CallOptions, CaptionOptions)
    def caption(self, images: Inputs, **options: Any) -> Any:
        """Image -> caption, list of images -> list of captions.

        A caption is a `str` with the attributes score, tokens, truncated and timings (blip2rt.Scored).

        options: the fields of blip2rt.Options, with the meaning of Hugging Face's `generate`. num_captions above 1
            gives a list of texts for each image: the best first, or in the order drawn (do_sample with one beam).
        prompt: text that the caption continues, not repeated in it; None is the bundle's own.
        raw: return the text as the tokenizer decodes it, with its line breaks; otherwise it is tidied to one line.
        scores: also compute the attribute `confidence`, the calibrated probability that the caption is right; and, as
            in 0.1, captions unpack to (text, score).
        on_token(image, draw, token_id): called for each new token of greedy search (num_beams=1) or sampling; a result
            of False ends the images of the same batch (at most 8) with what there is.
        on_timeout: if max_time passes before the first word, "raise" TimeoutError, or return None in the text's place.
        """
        many, single = as_list(images)
        results = list(self._captions(many, False, options))
        return results[0] if single else results

    @overload
    def caption_each(
        self, images: Many, *, keep_going: No = ..., num_captions: One = ..., **options: Unpack[CaptionOptions]
    ) -> Iterator[Scored]: ...
    @overload
    def caption_each(
        self, images: Many, *, keep_going: No = ..., num_captions: int, **options: Unpack[CaptionOptions]
    ) -> Iterator[list[Scored]]: ...
    @overload
    def caption_each(
        self, images: Many, *, keep_going: bool, num_captions: One = ..., **options: Unpack[CaptionOptions]
    ) -> Iterator[Scored | ImageError]: ...
    @overload
    def caption_each(
        self, images: Many, *, keep_going: bool, num_captions: int, **options: Unpack[CaptionOptions]
    ) -> Iterator[list[Scored] | ImageError]: ...
    @overload
    def caption_each(self, images: Many, *, on_timeout: None, **options: Unpack[CaptionOptions]) -> Iterator[Any]: ...
    @shown("Iterator[Scored | list[Scored]]", CallOptions, CaptionOptions)
    def caption_each(self, images: Many, *, keep_going: bool = False, **options: Any) -> Iterator[Any]:
        """Caption any number of images in order, a few in memory at a time.

        keep_going: return a bad image's ImageError in place of its caption instead of raising it.
        options: those of `caption`; they are checked before the first image is read.
        """
        return self._captions(images, keep_going, options)

    def _captions(self, images: Many, keep_going: bool, options: dict[str, Any]) -> Iterator[Any]:
        prompt, raw, scores, on_token = (options.pop(name, None) for name in ("prompt", "raw", "scores", "on_token"))
        on_timeout = options.pop("on_timeout", "raise")
        task = self.pipeline.task_of(prompt, None, merge(Options(), options))
        task = replace(task, single_line=not raw, confidence=bool(scores))
        check_call(on_timeout, on_token, task.settings)
        one_by_one(images)
        found = self.pipeline.generate_each(images, repeat(task), on_token, keep_going)
        return (shaped(texts, scores, task.settings, on_timeout) for texts in found)

    @overload
    def ask(
        self, images: ImageLike, questions: str, *, num_captions: One = 1, **options: Unpack[AskOptions]
    ) -> Scored: ...
    @overload
    def ask(
        self, images: Inputs, questions: Texts, *, num_captions: One = 1, **options: Unpack[AskOptions]
    ) -> list[Scored]: ...
    @overload
    def ask(
        self, images: ImageLike, questions: str, *, num_captions: int, **options: Unpack[AskOptions]
    ) -> list[Scored]: ...
    @overload
    def ask(
        self, images: Inputs, questions: Texts, *, num_captions: int, **options: Unpack[AskOptions]
    ) -> list[list[Scored]]: ...
    @overload
    def ask(
        self, images: ImageLike, questions: str, *, keep_going: bool, **options: Unpack[AskOptions]
    ) -> Scored | ImageError: ...
    @overload
    def ask(
        self, images: Inputs, questions: Texts, *, keep_going: bool, **options: Unpack[AskOptions]
    ) -> list[Scored | ImageError]: ...
    @overload
    def ask(self, images: Inputs, questions: Texts, *, on_timeout: None, **options: Unpack[AskOptions]) -> Any: ...
    @shown("Scored | list[Scored] | list[list[Scored]]", CallOptions, AskOptions)
    def ask(self, images: Inputs, questions: Texts, *, keep_going: bool = False, **options: Any) -> Any:
        """Image and question -> answer. Lists are taken pairwise; one image or one question goes with all of a list.

        The question is put into the bundle's template; a Q-Former that reads questions reads it too. An answer is the
        text as the tokenizer decodes it, with its line breaks. keep_going is that of `caption_each`; options, scores,
        on_token and on_timeout are those of `caption`.
        """
        self.pipeline.require(contract.GENERATIVE, "ask")
        scores, on_token = options.pop("scores", False), options.pop("on_token", None)
        on_timeout = options.pop("on_timeout", "raise")
        many_images, many_questions, single = pairs(images, questions, "questions")
        tasks = self.pipeline.question_tasks(many_questions, merge(Options(), options))
        settings = tasks[0].settings if tasks else {}
        check_call(on_timeout, on_token, settings)
        found = self.pipeline.generate_each(many_images, iter(tasks), on_token, keep_going)
        answers = [shaped(texts, scores, settings, on_timeout) for texts in found]
        return answers[0] if single else answers

    @shown("Iterator[str]", StreamOptions)
    def stream(self, image: ImageLike, prompt: str | None = None, **options: Unpack[StreamOptions]) -> Iterator[str]:
        """Image -> pieces of its caption, or of the answer to `question`, as they are decoded.

        Joined, the pieces are the text of `caption` or `ask`; each holds whole characters. With beams, a piece comes
        once all beams agree on it, and the rest at the end. The next token is computed after a piece was taken: leaving
        the loop ends the generation. `prompt` and the other options are those of `caption`.
        """
        pipeline = self.pipeline
        pipeline.require(contract.GENERATIVE, "stream")
        task = pipeline.task(prompt, **options)
        if task.settings["num_return_sequences"] > 1:
            raise OptionError("stream gives one text: leave num_captions at 1")
        watch = Stopwatch(task.settings)
        prepared = [self.prepare(image)]
        [judged] = pipeline.judged(prepared, [task])
        if judged is not None:
            return iter([judged.text])
        prefix_embeds = pipeline.prefix_embeds(prepared, [task.question])
        if watch.expired:
            raise too_late(task.settings)
        tidied = options.get("question") is None
        return pipeline.language.stream(prefix_embeds, task.prompt, watch.remaining, tidied)

    def submit(self, request: Request, *, on_news: Callable[[Answer], object] | None = None) -> Answer:
        """Queue a request, to be decoded in one batch with others. Return once its image has been encoded.

        on_news(answer): called from a thread of blip2rt's on all progress until the request is done: answer.take() and
            answer.done say what is new. It must be quick; if it raises, only this request fails.
        Raises OptionError without load(batching=True), for bad requests, and for requests larger than the pool.
        """
        return submit(self.pipeline, request, on_news)

    def counters(self) -> dict[str, int]:
        """Counters of load(batching=..., cache_bytes=...) by name; see docs/batching.md."""
        cache, batcher = self.pipeline.cache, self.pipeline.backend.batcher
        counters = {"image_hits": cache.hits, "image_misses": cache.misses, "image_bytes": cache.bytes}
        return counters | ({} if batcher is None else batcher.counters())

    @shown("Chat", TextOptions)
    def chat(self, image: ImageLike, **options: Unpack[TextOptions]) -> Chat:
        """Image -> conversation about it, in which a question costs only its own tokens; see Chat.

        The options are those of `caption`, and the defaults of every question.
        """
        self.pipeline.require(contract.GENERATIVE, "chat")
        language = self.pipeline.language
        language.need_chat()
        chosen = merge(Options(), options)
        language.settings("ask", chosen, [])  # checked before the image is read
        prepared = [self.prepare(image)]

        def judged(question: str, settings: Mapping[str, Any]) -> Scored | None:
            statement = self.pipeline.statement(question, settings)
            return self.pipeline.judged(prepared, [GenerationTask(Prompt(), "", settings, statement=statement)])[0]

        return Chat(language, self.pipeline.prefix_embeds(prepared, [""]), chosen, judged)

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
        self.pipeline.require(contract.RETRIEVAL, "match")
        many_images, many_texts, single = pairs(images, texts, "texts")
        _check_words(many_texts)

        def matches(numbers: list[int], features: Floats) -> list[Match]:
            return self.match_features(features, [many_texts[i] for i in numbers])

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
        self.matcher.require_calibration("judge what it sees")
        check_probability(threshold, "threshold")
        many_images, many_texts, single = pairs(images, statements, "statements")
        _check_words(many_texts)

        def judged(numbers: list[int], features: Floats) -> list[bool]:
            found = self.matcher.judge(features, [many_texts[i] for i in numbers])
            return [bool(probability > threshold) for probability in found]

        seen = self.pipeline.map_features(many_images, False, judged)
        return seen[0] if single else seen

    @shown("list[tuple[str, numpy.ndarray]]")
    def attention(self, image: ImageLike, text: str | None = None) -> list[tuple[str, Floats]]:
        """Image -> each word of its caption, or of `text`, with the map (rows, columns) float32 of where it is seen.

        A map is the cross-attention of the queries that the word depends on; its sum is 1. Takes about as long as one
        caption for each query. Raises CapabilityError for bundles without the component `attention`.
        """
        require_maps(self.pipeline)
        prepared = self.prepare(image)
        return word_attention(self.pipeline, prepared, self.caption(prepared) if text is None else text)

    @overload
    def tag(
        self, images: ImageLike, labels: Sequence[str | Label] | None = None, *, top: int = 10, threshold: float = 0.3
    ) -> list[Tag]: ...
    @overload
    def tag(
        self, images: Images, labels: Sequence[str | Label] | None = None, *, top: int = 10, threshold: float = 0.3
    ) -> list[list[Tag]]: ...
    @shown("list[Tag] | list[list[Tag]]")
    def tag(
        self,
        images: Inputs,
        labels: Sequence[str | Label] | None = None,
        *,
        top: int = 10,
        threshold: float = 0.3,
        keep_going: bool = False,
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
        features = self.pipeline.stack(
            contract.VISION, self.pipeline.map_features(many, False, lambda _, features: features)
        )
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
        self.pipeline.require((contract.IMAGE_EMBED,), "embed_image")
        many, single = as_list(images)
        found = self.pipeline.map_features(many, keep_going, lambda _, features: self.embed_features(features))
        if single:
            return found[0]
        return found if keep_going else self.pipeline.stack(contract.IMAGE_EMBED, found)

    @shown()
    def embed_text(self, texts: Texts) -> Floats:
        """Text -> (E,) float32 of unit length, list of texts -> (B, E). Texts too long for the model are cut."""
        self.pipeline.require((contract.TEXT_EMBED,), "embed_text")
        many, single = texts_of(texts, "texts")
        embeds = self.pipeline.stack(contract.TEXT_EMBED, self.matcher.text_embeds(many))
        return embeds[0] if single else embeds

    @property
    def match_weights(self) -> MatchWeights:
        """How Match.score weighs its parts."""
        return self.matcher.weights

    # Awaitable: the work runs in a thread

    acaption = awaited(caption)
    aask = awaited(ask)
    amatch = awaited(match)
    asees = awaited(sees)
    atag = awaited(tag)
    aembed_image = awaited(embed_image)
    aembed_text = awaited(embed_text)

    async def astream(
        self, image: ImageLike, prompt: str | None = None, **options: Unpack[StreamOptions]
    ) -> AsyncIterator[str]:
        """`stream`, awaited piece by piece. Leaving the loop ends the generation."""
        pieces = await awaited(self.stream)(image, prompt, **options)
        while (piece := await awaited(next)(pieces, None)) is not None:
            yield piece


def _check_words(texts: Sequence[str]) -> None:
    if not all(any(map(str.isalnum, text)) for text in texts):
        raise OptionError("a text has no words: say what the image may show, as in 'a dog on grass'")
