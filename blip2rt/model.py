"""The public interface: `load` opens a bundle, and its `Model` captions, answers and matches.

Checks what callers pass, and returns one result for one image and a list for a list. pipeline.py has the data path.
"""

# mypy: disable-error-code="overload-overlap"
# A str is a sequence of str, and 1 is an int: the first signature that fits counts.

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from .arguments import as_list, awaited, one_by_one, pairs, shown
from .bundle import GENERATIVE, RETRIEVAL
from .errors import ImageError, OptionError
from .image import ImageLike, ImageSettings
from .language import Chat
from .matching import Matcher, MatchingCalls
from .options import AskOptions, CallOptions, CaptionOptions, Options, StreamOptions, TextOptions, check_call, merge
from .pipeline import Pipeline
from .pixels.feature_cache import FeatureCache
from .results import Scored, Stopwatch, shaped, too_late

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .backends import Backend
    from .bundle import Bundle
    from .language import Prompt
    from .native import GenerationOptions
    from .requests import Answer, Request

    Images: TypeAlias = Sequence[ImageLike]
    Inputs: TypeAlias = ImageLike | Images
    Many: TypeAlias = Iterable[ImageLike]
    Texts: TypeAlias = str | Sequence[str]
    One: TypeAlias = Literal[1]
    No: TypeAlias = Literal[False]


class Model(MatchingCalls):
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
        if self.bundle.has(*GENERATIVE):
            self.caption(image, max_new_tokens=2)
        if self.bundle.has(*RETRIEVAL):
            self.match(image, "a photo")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> the caption that they spell. Raises CapabilityError without a language model."""
        self.pipeline.require(GENERATIVE, "decode")
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
        pool: file of captions of other pictures, one a line or built by `blip2rt pool build`: those nearest to the
            image guide its caption, which takes on their words without training. None is the bundle's own pool, if it
            has one, for captions without a prompt or sampling; False or "none" is no pool.
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
        prompt, scores, on_token = (options.pop(name, None) for name in ("prompt", "scores", "on_token"))
        on_timeout, chosen = options.pop("on_timeout", "raise"), merge(Options(), options, captions=True)
        task = self.pipeline.task_of(prompt, None, chosen)
        task = replace(task, single_line=not chosen.raw, confidence=bool(scores))
        check_call(on_timeout, on_token, task.settings)
        one_by_one(images)
        tasks = repeat(self.matcher.with_pool(task, chosen.pool))
        found = self.pipeline.generate_each(images, tasks, on_token, keep_going)
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
        maker = self.pipeline.tasks("ask")
        scores, on_token = options.pop("scores", False), options.pop("on_token", None)
        on_timeout = options.pop("on_timeout", "raise")
        many_images, many_questions, single = pairs(images, questions, "questions")
        tasks = maker.of_questions(many_questions, merge(Options(), options))
        check_call(on_timeout, on_token, tasks[0].settings if tasks else None)
        found = self.pipeline.generate_each(many_images, iter(tasks), on_token, keep_going)
        answers = [shaped(texts, scores, tasks[0].settings, on_timeout) for texts in found]
        return answers[0] if single else answers

    @shown("Iterator[str]", StreamOptions)
    def stream(self, image: ImageLike, prompt: str | None = None, **options: Unpack[StreamOptions]) -> Iterator[str]:
        """Image -> pieces of its caption, or of the answer to `question`, as they are decoded.

        Joined, the pieces are the text of `caption` or `ask`; each holds whole characters. With beams, a piece comes
        once all beams agree on it, and the rest at the end; with beams and a pool, all at the end. The next token is
        computed after a piece was taken: leaving the loop ends the generation. `prompt` and the other options are those
        of `caption`.
        """
        pipeline = self.pipeline
        pipeline.require(GENERATIVE, "stream")
        question, chosen = options.pop("question", None), merge(Options(), options, captions=True)
        task = self.matcher.with_pool(pipeline.task_of(prompt, question, chosen), chosen.pool)
        if task.settings.num_return_sequences > 1:
            raise OptionError("stream gives one text: leave num_captions at 1")
        watch = Stopwatch(task.settings)
        begun = pipeline.begin(self.prepare(image), task, watch)
        if isinstance(begun, Scored):
            return iter([begun.text])
        if watch.expired:
            raise too_late(task.settings.max_time)
        language, (prefix_embeds, settings) = pipeline.language, begun
        generation = pipeline.backend.begin(prefix_embeds, [language.encode(task.prompt)], settings)
        return language.pieces(generation, settings, task.single_line and not chosen.raw)

    def submit(self, request: Request, *, on_news: Callable[[Answer], object] | None = None) -> Answer:
        """Queue a request, to be decoded in one batch with others. Return once its image has been encoded.

        on_news(answer): called from a thread of blip2rt's on all progress until the request is done: answer.take() and
            answer.done say what is new. It must be quick; if it raises, only this request fails.
        Raises OptionError without load(batching=True), for bad requests, and for requests larger than the pool.
        """
        from .requests import submit

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
        tasks, language = self.pipeline.tasks("chat"), self.pipeline.language
        language.need_chat()
        chosen = merge(Options(), options)
        language.settings("ask", chosen, [])  # checked before the image is read
        prepared = [self.prepare(image)]
        features = self.features(prepared)

        def begun(prompt: Prompt, settings: GenerationOptions) -> Scored | GenerationOptions:
            task = tasks.checked(prompt, prompt.text, settings)
            if task.short_question is not None:
                return self.pipeline.short_answers(features, [task])[0]
            return task.guided(settings, [features])

        return Chat(language, self.pipeline.prefix_embeds(prepared, [""], features), chosen, begun, tasks.rewords)

    # Awaitable: the work runs in a thread

    acaption = awaited(caption)
    aask = awaited(ask)

    async def astream(
        self, image: ImageLike, prompt: str | None = None, **options: Unpack[StreamOptions]
    ) -> AsyncIterator[str]:
        """`stream`, awaited piece by piece. Leaving the loop ends the generation."""
        pieces = await awaited(self.stream)(image, prompt, **options)
        while (piece := await awaited(next)(pieces, None)) is not None:
            yield piece
