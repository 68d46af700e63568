"""What a user calls: `load` opens a bundle, a `Model` captions, answers and matches.

Checks what a caller gives, and returns one result for one image and a list for a list. The path of the data is
pipeline's.
"""

# mypy: disable-error-code="overload-overlap"
# A str is a sequence of str and 1 is an int: of several signatures that fit, the first one holds.

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from . import backends
from . import bundle as contract
from .answers import Answer, Request
from .backends import OnToken
from .batching import Batched, Batching
from .errors import BundleError, ImageError, OptionError
from .feature_cache import Kept
from .image import COLORS, MAX_PIXELS, MOST_PIXELS, ImageLike
from .language import Chat, Scored
from .one_or_many import as_list, one_by_one, pairs, texts_of
from .options import CaptionOptions, Options, TextOptions, is_whole, merge
from .pipeline import BATCH, Intake, Match, Pipeline, Stopwatch

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .backends import Backend, Floats
    from .backends.trt.plans import PlanSizes
    from .bundle import Bundle

    Images: TypeAlias = Sequence[ImageLike]
    One: TypeAlias = Literal[1]
    No: TypeAlias = Literal[False]
    Yes: TypeAlias = Literal[True]
    Text: TypeAlias = str | Scored | list[str] | list[Scored]  # of one image


class Asked(TextOptions, total=False):
    """Keywords of `ask`, besides scores and num_captions."""

    on_token: OnToken | None


class Captioned(Asked, total=False):
    """Keywords of `caption`, besides scores and num_captions."""

    prompt: str | None
    raw: bool


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    backend: str = "ort",
    device: str | None = None,
    threads: int | None = None,
    engines: PlanSizes | None = None,
    scaled_jpeg: bool = False,
    max_pixels: int = MAX_PIXELS,
    special_tokens: bool = True,
    color: str = "rgb",
    batching: bool | Batching = False,
    cache_bytes: int = 0,
) -> Model:
    """Open a bundle; None or "nano" is the embedded model. Its graphs are loaded when they are first needed.

    backend: "ort" (ONNX Runtime) or "trt" (TensorRT, docs/jetson.md; a bundle exported for it).
    device: "cpu" for ort, "cuda" for trt; None is what the backend runs on.
    engines: for trt, the sizes that plans are built for (blip2rt.backends.trt.PlanSizes). Building takes minutes, once.
    threads: for ort, how many an operator may use; None asks BLIP2RT_NUM_THREADS, then takes every physical core.
    scaled_jpeg: large JPEGs are decoded at a fraction of their size, faster and not quite the same (blip2rt.image).
    max_pixels: width times height of an image file, at most; what has more is an ImageError.
    special_tokens: False makes "<|im_end|>" in a caller's prompt, question or text plain text, not that token.
    color: "rgb", or "bgr" where arrays come from OpenCV.
    batching: threads that call at the same time decode together, and `submit` is there; for ort on a CPU. A Batching
        (blip2rt.batching) says how much at once.
    cache_bytes: what is known of images that come again is kept, and with batching what was read of prompts; at most so
        many bytes, three quarters of them for prompts.

    Raises BundleError (missing, damaged, too new), BackendError (unknown name, no GPU), OptionError (threads, device,
    engines, color, batching).
    """
    if threads is not None and not is_whole(threads, 1, 1024):
        raise OptionError(f"threads is {threads!r}: give a whole number from 1 to 1024, or leave it out for all cores")
    if not isinstance(scaled_jpeg, bool):
        raise OptionError(f"scaled_jpeg is {scaled_jpeg!r}: give True or False")
    if not is_whole(max_pixels, 1, MOST_PIXELS):
        raise OptionError(f"max_pixels is {max_pixels!r}: give a number of pixels from 1 to {MOST_PIXELS:,}")
    if not isinstance(special_tokens, bool):
        raise OptionError(f"special_tokens is {special_tokens!r}: give True or False")
    if color not in COLORS:
        raise OptionError(f"color is {color!r}: give 'rgb', or 'bgr' where arrays come from OpenCV")
    if not isinstance(batching, bool | Batching):
        raise OptionError(f"batching is {batching!r}: give True, False or a blip2rt.batching.Batching")
    if batching and (backend != "ort" or device == "cuda"):
        raise OptionError("batching is for the backend ort on a CPU: leave it out, or leave out backend and device")
    if not is_whole(cache_bytes, 0, 1 << 50):
        raise OptionError(f"cache_bytes is {cache_bytes!r}: give a number of bytes, or 0 to keep nothing")
    folder = _folder(bundle)
    opened = contract.read(folder)
    chosen = backends.create(backend, opened, threads=threads, device=device, engines=engines)
    kept = Kept(cache_bytes)
    if batching and opened.manifest.llm is not None:
        kept = Kept(cache_bytes // 4)
        sizes = batching if isinstance(batching, Batching) else Batching()
        chosen = Batched(chosen, opened.manifest.llm, sizes, cache_bytes - kept.most_bytes)
    again: dict[str, Any] = {
        "backend": backend, "device": device, "threads": threads, "engines": engines, "scaled_jpeg": scaled_jpeg,
        "max_pixels": max_pixels, "special_tokens": special_tokens, "color": color, "batching": batching,
        "cache_bytes": cache_bytes,
    }  # fmt: skip
    opening = partial(load, os.path.abspath(folder), **again)
    return Model(opened, chosen, Intake(scaled_jpeg, max_pixels, special_tokens, color), opening, kept)


def _folder(bundle: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The bundle's folder. A folder called nano comes before the embedded model."""
    if bundle == "":
        raise BundleError("the bundle is '': give its folder, or leave it out for nano")
    if bundle is None or (bundle == "nano" and not os.path.exists(bundle)):
        return contract.embedded()
    return bundle


class Model(Pipeline):
    """A loaded bundle. Every method may be called from any thread.

    One image (or text) gives one result, a list gives a list; blip2rt.image says what an image may be.
    Every method raises ImageError for a bad image, OptionError for bad options and texts (all faults at once),
    CapabilityError where the bundle lacks the components, and BackendError when the backend fails.

    A pickled model is opened anew from its folder. `with` closes it at the end.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        intake: Intake | None = None,
        opening: Callable[[], Model] | None = None,
        kept: Kept | None = None,
    ) -> None:
        """opening: loads the same model again, in the process that unpickles it. kept: see Pipeline."""
        super().__init__(bundle, backend, intake, kept)
        self._opening = opening

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()]]:
        if self._opening is None:
            raise TypeError("this model was not made by blip2rt.load, which is what a pickle calls")
        return self._opening, ()

    def __repr__(self) -> str:
        return f"<blip2rt.Model {self._manifest.name!r} for {self._manifest.target}, of {self.bundle.path}>"

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the graphs' memory back. What is called afterwards raises BackendError; closing again does nothing."""
        self._backend.close()

    def warm_up(self) -> None:
        """Load every graph and run it once, so that the first call is as fast as those after it."""
        image = np.zeros((self._manifest.image.height, self._manifest.image.width, 3), np.uint8)
        if all(map(self.bundle.has, contract.GENERATIVE)):
            self.caption(image, max_new_tokens=2)
        if all(map(self.bundle.has, contract.RETRIEVAL)):
            self.match(image, "a photo")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> the text that a caption of them is. Raises CapabilityError without a language model."""
        self._need(contract.GENERATIVE, "decode")
        return self._language.decode(token_ids)

    # fmt: off
    @overload
    def caption(self, images: ImageLike, *,
            scores: No = ..., num_captions: One = ..., **options: Unpack[Captioned]) -> str: ...
    @overload
    def caption(self, images: ImageLike, *,
            scores: No = ..., num_captions: int, **options: Unpack[Captioned]) -> list[str]: ...
    @overload
    def caption(self, images: ImageLike, *,
            scores: Yes, num_captions: One = ..., **options: Unpack[Captioned]) -> Scored: ...
    @overload
    def caption(self, images: ImageLike, *,
            scores: Yes, num_captions: int, **options: Unpack[Captioned]) -> list[Scored]: ...
    @overload
    def caption(self, images: Images, *,
            scores: No = ..., num_captions: One = ..., **options: Unpack[Captioned]) -> list[str]: ...
    @overload
    def caption(self, images: Images, *,
            scores: No = ..., num_captions: int, **options: Unpack[Captioned]) -> list[list[str]]: ...
    @overload
    def caption(self, images: Images, *,
            scores: Yes, num_captions: One = ..., **options: Unpack[Captioned]) -> list[Scored]: ...
    @overload
    def caption(self, images: Images, *,
            scores: Yes, num_captions: int, **options: Unpack[Captioned]) -> list[list[Scored]]: ...
    # fmt: on
    def caption(
        self,
        images: ImageLike | Images,
        *,
        prompt: str | None = None,
        scores: bool = False,
        raw: bool = False,
        on_token: OnToken | None = None,
        **options: Unpack[CaptionOptions],
    ) -> Text | list[Any]:
        """Image -> caption, list of images -> list of captions.

        prompt: words that the caption goes on from, not repeated in it; None is the bundle's own.
        options: the fields of blip2rt.Options, with the meaning of Hugging Face's `generate`. num_captions above 1
            gives a list of str for each image: the best first, with do_sample and 1 beam in the order drawn.
        scores: gives Scored(text, score) in place of each str; its attributes tokens, truncated and timings tell more.
        raw: gives the text as the tokenizer decodes it, with its lines and spaces; else it is tidied to a single line.
        on_token(image, draw, token_id): called for each token as it is chosen, by greedy search (num_beams=1) or
            sampling; returning False ends the images decoded together (8 at most) with what there is.
        """
        many, single = as_list(images)
        results: list[Any] = list(self._captions(many, prompt, (scores, raw), on_token, options, False))
        return results[0] if single else results

    # fmt: off
    @overload
    def caption_each(self, images: Iterable[ImageLike], *, keep_going: No = ...,
            scores: No = ..., num_captions: One = ..., **options: Unpack[Captioned]) -> Iterator[str]: ...
    @overload
    def caption_each(self, images: Iterable[ImageLike], *, keep_going: No = ...,
            scores: No = ..., num_captions: int, **options: Unpack[Captioned]) -> Iterator[list[str]]: ...
    @overload
    def caption_each(self, images: Iterable[ImageLike], *, keep_going: No = ...,
            scores: Yes, num_captions: One = ..., **options: Unpack[Captioned]) -> Iterator[Scored]: ...
    @overload
    def caption_each(self, images: Iterable[ImageLike], *, keep_going: No = ...,
            scores: Yes, num_captions: int, **options: Unpack[Captioned]) -> Iterator[list[Scored]]: ...
    @overload
    def caption_each(self, images: Iterable[ImageLike], *, keep_going: bool,
            scores: No = ..., num_captions: One = ..., **options: Unpack[Captioned]) -> Iterator[str | ImageError]: ...
    @overload
    def caption_each(self, images: Iterable[ImageLike], *, keep_going: bool,
            scores: No = ..., num_captions: int, **options: Unpack[Captioned]) -> Iterator[list[str] | ImageError]: ...
    @overload
    def caption_each(self, images: Iterable[ImageLike], *, keep_going: bool,
            scores: Yes, num_captions: One = ..., **options: Unpack[Captioned]) -> Iterator[Scored | ImageError]: ...
    @overload
    def caption_each(self, images: Iterable[ImageLike], *, keep_going: bool,
            scores: Yes, num_captions: int, **options: Unpack[Captioned]) -> Iterator[list[Scored] | ImageError]: ...
    # fmt: on
    def caption_each(
        self,
        images: Iterable[ImageLike],
        *,
        prompt: str | None = None,
        keep_going: bool = False,
        scores: bool = False,
        raw: bool = False,
        on_token: OnToken | None = None,
        **options: Unpack[CaptionOptions],
    ) -> Iterator[Any]:
        """Captions of any number of images, in order and as they come; a few images are in memory at a time.

        keep_going: a bad image's ImageError takes the place of its caption instead of being raised.
        The options are those of `caption`; they are checked before the first image is read.
        """
        return self._captions(images, prompt, (scores, raw), on_token, options, keep_going)

    # fmt: off
    @overload
    def ask(self, images: ImageLike, questions: str, *, keep_going: No = ...,
            scores: No = ..., num_captions: One = ..., **options: Unpack[Asked]) -> str: ...
    @overload
    def ask(self, images: ImageLike, questions: str, *, keep_going: No = ...,
            scores: No = ..., num_captions: int, **options: Unpack[Asked]) -> list[str]: ...
    @overload
    def ask(self, images: ImageLike, questions: str, *, keep_going: No = ...,
            scores: Yes, num_captions: One = ..., **options: Unpack[Asked]) -> Scored: ...
    @overload
    def ask(self, images: ImageLike, questions: str, *, keep_going: No = ...,
            scores: Yes, num_captions: int, **options: Unpack[Asked]) -> list[Scored]: ...
    @overload
    def ask(self, images: ImageLike | Images, questions: str | Sequence[str], *, keep_going: No = ...,
            scores: No = ..., num_captions: One = ..., **options: Unpack[Asked]) -> list[str]: ...
    @overload
    def ask(self, images: ImageLike | Images, questions: str | Sequence[str], *, keep_going: No = ...,
            scores: No = ..., num_captions: int, **options: Unpack[Asked]) -> list[list[str]]: ...
    @overload
    def ask(self, images: ImageLike | Images, questions: str | Sequence[str], *, keep_going: No = ...,
            scores: Yes, num_captions: One = ..., **options: Unpack[Asked]) -> list[Scored]: ...
    @overload
    def ask(self, images: ImageLike | Images, questions: str | Sequence[str], *, keep_going: No = ...,
            scores: Yes, num_captions: int, **options: Unpack[Asked]) -> list[list[Scored]]: ...
    @overload
    def ask(self, images: ImageLike, questions: str, *, keep_going: bool,
            scores: No = ..., num_captions: One = ..., **options: Unpack[Asked]) -> str | ImageError: ...
    @overload
    def ask(self, images: ImageLike, questions: str, *, keep_going: bool,
            scores: No = ..., num_captions: int, **options: Unpack[Asked]) -> list[str] | ImageError: ...
    @overload
    def ask(self, images: ImageLike, questions: str, *, keep_going: bool,
            scores: Yes, num_captions: One = ..., **options: Unpack[Asked]) -> Scored | ImageError: ...
    @overload
    def ask(self, images: ImageLike, questions: str, *, keep_going: bool,
            scores: Yes, num_captions: int, **options: Unpack[Asked]) -> list[Scored] | ImageError: ...
    @overload
    def ask(self, images: ImageLike | Images, questions: str | Sequence[str], *, keep_going: bool,
            scores: No = ..., num_captions: One = ..., **options: Unpack[Asked]) -> list[str | ImageError]: ...
    @overload
    def ask(self, images: ImageLike | Images, questions: str | Sequence[str], *, keep_going: bool,
            scores: No = ..., num_captions: int, **options: Unpack[Asked]) -> list[list[str] | ImageError]: ...
    @overload
    def ask(self, images: ImageLike | Images, questions: str | Sequence[str], *, keep_going: bool,
            scores: Yes, num_captions: One = ..., **options: Unpack[Asked]) -> list[Scored | ImageError]: ...
    @overload
    def ask(self, images: ImageLike | Images, questions: str | Sequence[str], *, keep_going: bool,
            scores: Yes, num_captions: int, **options: Unpack[Asked]) -> list[list[Scored] | ImageError]: ...
    # fmt: on
    def ask(
        self,
        images: ImageLike | Images,
        questions: str | Sequence[str],
        *,
        keep_going: bool = False,
        scores: bool = False,
        on_token: OnToken | None = None,
        **options: Unpack[CaptionOptions],
    ) -> Text | ImageError | list[Any]:
        """Image and question -> answer. Lists are taken pairwise; one image or one question goes with all of a list.

        An answer is the text as the tokenizer decodes it, with its lines and spaces.
        The question is put into the bundle's template; a Q-Former that reads questions reads it too. keep_going is that
        of `caption_each`. Options, scores and on_token are those of `caption`.
        """
        self._need(contract.GENERATIVE, "ask")
        many_images, many_questions, single = pairs(images, questions, "questions")
        prompts = [self._language.ask_prompt(question) for question in many_questions]
        settings = self._language.settings("ask", merge(Options(), options), prompts)
        _check_on_token(on_token, settings)
        asked = zip(prompts, map(self._read_question, many_questions), strict=True)
        found = self._generate_each(many_images, asked, settings, on_token, keep_going)
        answers: list[Any] = [_shaped(texts, scores, settings) for texts in found]
        return answers[0] if single else answers

    def stream(
        self,
        image: ImageLike,
        prompt: str | None = None,
        *,
        question: str | None = None,
        **options: Unpack[TextOptions],
    ) -> Iterator[str]:
        """Image -> pieces of its caption, or of the answer to `question`, as they come; joined they are the text.

        A piece holds whole characters. The next token is computed when a piece has been taken: leaving the loop ends
        the generation. Greedy, or with do_sample; the other options and `prompt` are those of `caption`.
        """
        self._need(contract.GENERATIVE, "stream")
        if prompt is not None and question is not None:
            raise OptionError("prompt and question are both given: a question has the bundle's own prompt")
        task = "caption" if question is None else "ask"
        text = self._language.caption_prompt(prompt) if question is None else self._language.ask_prompt(question)
        settings = self._language.settings(task, merge(Options(), {"num_beams": 1, **options}), [text])
        if settings["num_beams"] > 1 or settings["num_return_sequences"] > 1:
            raise OptionError("stream gives one text, token by token: leave num_beams and num_captions at 1")
        watch = Stopwatch(settings)
        read = text.whole if question is None else self._read_question(question)
        prefix_embeds = self._prefix_embeds(self._prepare([image]), [read])
        return self._language.stream(prefix_embeds, text, watch.left)

    def submit(self, request: Request, *, on_news: Callable[[Answer], object] | None = None) -> Answer:
        """Hand in a request, to be answered together with others. Return when its image has gone through the encoder.

        on_news(answer): called from a thread of blip2rt's whenever something is new, until it is done: answer.take()
            and answer.done say what. It must be quick; where it raises, that request alone ends with the error.
        Raises OptionError without load(batching=True), for bad requests, and for what never fits the pool.
        """
        self._need(contract.GENERATIVE, "submit")
        if not isinstance(request, Request) or not isinstance(request.options, Options):
            raise OptionError("submit takes a blip2rt.answers.Request, whose options are blip2rt.Options")
        backend = self._backend
        if not isinstance(backend, Batched):
            raise OptionError("this model decodes each call by itself: load(batching=True) to submit requests")
        if request.prompt is not None and request.question is not None:
            raise OptionError("prompt and question are both given: a question has the bundle's own prompt")
        asks = request.question is not None
        text = (
            self._language.ask_prompt(request.question or "") if asks else self._language.caption_prompt(request.prompt)
        )
        settings = self._language.settings("ask" if asks else "caption", request.options, [text])
        prompt = self._language.encode(text)
        backend.check(prompt, settings)
        watch = Stopwatch(settings)
        if request.image is None:
            if not prompt:
                raise OptionError("a request has neither an image nor a prompt: give one of them")
            spec = self._manifest.llm
            assert spec is not None
            prefix_embeds = np.zeros((1, 0, spec.hidden_size), np.float32)
        else:
            read = self._read_question(request.question) if request.question is not None else text.whole
            prefix_embeds = self._prefix_embeds(self._prepare([request.image]), [read])
        call = backend.submit(prefix_embeds, [prompt], watch.left, each_token=True)
        return Answer(backend, self._language, call, settings, on_news)

    def counters(self) -> dict[str, int]:
        """What load(batching=..., cache_bytes=...) has done and has now, by name; see docs/batching.md."""
        kept = {"image_hits": self._kept.hits, "image_misses": self._kept.misses, "image_bytes": self._kept.bytes}
        return kept | (self._backend.counters() if isinstance(self._backend, Batched) else {})

    def chat(self, image: ImageLike, **options: Unpack[TextOptions]) -> Chat:
        """Image -> conversation about it, in which a question costs only its own tokens; see Chat.

        The options are those of `caption` and hold for every question that says nothing else.
        """
        self._need(contract.GENERATIVE, "chat")
        self._language.need_chat()
        chosen = merge(Options(), options)
        self._language.settings("ask", chosen, [])  # checked before the image is read
        return Chat(self._language, self._prefix_embeds(self._prepare([image]), [""]), chosen)

    # fmt: off
    @overload
    def match(self, images: ImageLike, texts: str, *, keep_going: No = ...) -> Match: ...
    @overload
    def match(self, images: ImageLike | Images, texts: str | Sequence[str], *, keep_going: No = ...) -> list[Match]: ...
    @overload
    def match(self, images: ImageLike, texts: str, *, keep_going: bool) -> Match | ImageError: ...
    @overload
    def match(self, images: ImageLike | Images, texts: str | Sequence[str], *,
            keep_going: bool) -> list[Match | ImageError]: ...
    # fmt: on
    def match(
        self, images: ImageLike | Images, texts: str | Sequence[str], *, keep_going: bool = False
    ) -> Match | ImageError | list[Any]:
        """Image and text -> Match. Lists are taken pairwise; one image or one text goes with all of a list.

        Texts too long for the model are cut. keep_going: a bad image's ImageError takes the place of its match instead
        of being raised.
        """
        self._need(contract.RETRIEVAL, "match")
        many_images, many_texts, single = pairs(images, texts, "texts")
        if not all(any(map(str.isalnum, text)) for text in many_texts):
            raise OptionError("a text has no words: say what the image may show, as in 'a dog on grass'")
        if keep_going:
            found = self._each_good(
                many_images, lambda numbers, features: self.match_features(features, [many_texts[i] for i in numbers])
            )
            return found[0] if single else found
        matches: list[Match] = []
        for vision_features in self._features_each(many_images):
            start = len(matches)
            matches += self.match_features(vision_features, many_texts[start : start + len(vision_features)])
        return matches[0] if single else matches

    def vision_features(self, images: ImageLike | Images) -> Floats:
        """Image -> (N, C) float32, list of images -> (B, N, C): kept, they spare match_features the encoder."""
        many, single = as_list(images)
        features = self._joined(contract.VISION, self._features_each(many))
        return features[0] if single else features

    # fmt: off
    @overload
    def embed_image(self, images: ImageLike | Images, *, keep_going: No = ...) -> Floats: ...
    @overload
    def embed_image(self, images: ImageLike, *, keep_going: bool) -> Floats | ImageError: ...
    @overload
    def embed_image(self, images: Images, *, keep_going: bool) -> list[Floats | ImageError]: ...
    # fmt: on
    def embed_image(self, images: ImageLike | Images, *, keep_going: bool = False) -> Floats | ImageError | list[Any]:
        """Image -> (Q, E) float32, list of images -> (B, Q, E): an embedding of unit length for each query.

        keep_going: a list gives a list of (Q, E), in which a bad image's ImageError takes the place of its embedding.
        """
        self._need((contract.IMAGE_EMBED,), "embed_image")
        many, single = as_list(images)
        if keep_going:
            found = self._each_good(many, lambda _, features: self._backend.image_embeds(features))
            return found[0] if single else found
        embeds = self._joined(contract.IMAGE_EMBED, map(self._backend.image_embeds, self._features_each(many)))
        return embeds[0] if single else embeds

    def embed_text(self, texts: str | Sequence[str]) -> Floats:
        """Text -> (E,) float32 of unit length, list of texts -> (B, E). Texts too long for the model are cut."""
        self._need((contract.TEXT_EMBED,), "embed_text")
        many, single = texts_of(texts, "texts")
        chunks = (many[start : start + BATCH] for start in range(0, len(many), BATCH))
        encoded = map(self._qformer_tokenizer.encode, chunks)
        embeds = self._joined(contract.TEXT_EMBED, (self._backend.text_embeds(*rows) for rows in encoded))
        return embeds[0] if single else embeds

    # Awaited: what is done runs in a thread, and the event loop goes on

    async def acaption(self, image: ImageLike, **options: Unpack[Captioned]) -> str:
        """`caption` of one image, awaited. Several at once: asyncio.gather."""
        return await _in_thread(self.caption, image, **options)

    async def aask(self, image: ImageLike, question: str, **options: Unpack[Asked]) -> str:
        """`ask` of one image and question, awaited."""
        return await _in_thread(self.ask, image, question, **options)

    async def amatch(self, image: ImageLike, text: str) -> Match:
        """`match` of one image and text, awaited."""
        return await _in_thread(self.match, image, text)

    async def astream(
        self,
        image: ImageLike,
        prompt: str | None = None,
        *,
        question: str | None = None,
        **options: Unpack[TextOptions],
    ) -> AsyncIterator[str]:
        """`stream`, piece by piece awaited. Leaving the loop ends the generation."""
        pieces = await _in_thread(self.stream, image, prompt, question=question, **options)
        while (piece := await _in_thread(next, pieces, None)) is not None:
            yield piece

    async def aembed_image(self, image: ImageLike) -> Floats:
        """`embed_image` of one image, awaited: (Q, E) float32."""
        return await _in_thread(self.embed_image, image)

    async def aembed_text(self, text: str) -> Floats:
        """`embed_text` of one text, awaited: (E,) float32."""
        return await _in_thread(self.embed_text, text)

    def _captions(
        self,
        images: Iterable[ImageLike],
        prompt: str | None,
        shape: tuple[bool, bool],
        on_token: OnToken | None,
        options: Mapping[str, Any],
        keep_going: bool,
    ) -> Iterator[Text | ImageError]:
        scores, raw = shape
        self._need(contract.GENERATIVE, "caption")
        text = self._language.caption_prompt(prompt)
        settings = self._language.settings("caption", merge(Options(), options), [text])
        _check_on_token(on_token, settings)
        one_by_one(images)
        found = self._generate_each(images, repeat((text, text.whole)), settings, on_token, keep_going, not raw)
        return (_shaped(texts, scores, settings) for texts in found)

    def _joined(self, component: str, chunks: Iterable[Floats]) -> Floats:
        """Join the chunks of a component's first output. No chunks are a batch of no rows."""
        shape = self._manifest.components[component].outputs[0].shape
        none = np.zeros([0, *(size if isinstance(size, int) else 0 for size in shape[1:])], np.float32)
        return np.concatenate(list(chunks) or [none])


async def _in_thread(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    import asyncio  # slow to import, for those alone who await

    return await asyncio.to_thread(function, *given, **options)


def _shaped(texts: list[Scored] | ImageError, scores: bool, settings: Mapping[str, Any]) -> Text | ImageError:
    """The texts of an image as the caller asked for them: one or a list, with scores or without."""
    if isinstance(texts, ImageError):
        return texts
    captions = texts if scores else [each.text for each in texts]
    return captions if settings["num_return_sequences"] > 1 else captions[0]


def _check_on_token(on_token: OnToken | None, settings: Mapping[str, Any]) -> None:
    if on_token is not None and not callable(on_token):
        raise OptionError(f"on_token is {on_token!r}: give a function of image, draw and token_id")
    if on_token is not None and settings["num_beams"] > 1:
        raise OptionError(
            f"on_token with num_beams {settings['num_beams']}: beams settle on tokens only at the end; give num_beams=1"
        )
