"""Model: image -> pixels -> vision_features -> prefix_embeds -> token ids -> text, and image and text -> match.

Reads top to bottom as the data flows. Knows the order of things; how each is done is image's, text's and the backend's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends
from . import bundle as contract
from .arguments import as_list, is_file, pairs, texts_of
from .bundle import Bundle
from .bundle.manifest import RetrievalSpec
from .errors import CapabilityError, ImageError, OptionError
from .image import ImageLike, normalize, prepare
from .language import Chat, Language, OnToken
from .options import Options, is_whole, merge
from .text import QFormerTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backends.trt import plans

    Floats = NDArray[np.float32]

BATCH = 8  # images that go through the graphs together


@dataclass(frozen=True)
class Match:
    """How well a text describes an image."""

    probability: float  # of "match", by the image-text matching head; 0 to 1
    cosine: float  # of the text's embedding and the nearest query's; -1 to 1
    score: float  # both as logits: itm_weight * log(p / (1 - p)) + cosine / temperature


def match_scores(itm_logits: Floats, cosine: Floats, itm_weight: float, temperature: float) -> NDArray[np.float64]:
    """Match.score (...) of the matching head's logits (..., 2) and cosines (...)."""
    log_odds = itm_logits[..., 1].astype(np.float64) - itm_logits[..., 0]
    return itm_weight * log_odds + cosine / temperature


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    backend: str = "ort",
    device: str | None = None,
    threads: int | None = None,
    engines: plans.Options | None = None,
    scaled_jpeg: bool = False,
) -> Model:
    """Opens a bundle; None is the embedded model, "nano". Its graphs are loaded when they are first needed.

    backend: "ort" (ONNX Runtime) or "trt" (TensorRT, docs/jetson.md; a bundle exported for it).
    device: of ort "cpu" (None) or "cuda"; of trt "cuda".
    engines: of trt, the sizes that engines are built for (blip2rt.backends.trt.plans.Options); building takes
    minutes, once.
    threads: how many an operator may use; None asks BLIP2RT_NUM_THREADS, then ONNX Runtime takes every physical core.
    scaled_jpeg: large JPEGs are decoded at a fraction of their size, faster and not quite the same (blip2rt.image).
    Raises BundleError (missing, damaged, too new), BackendError (unknown name, no GPU), OptionError (threads, device,
    engines).
    """
    if threads is not None and not is_whole(threads, 1, 1024):
        raise OptionError(f"threads is {threads!r}: give a whole number from 1 to 1024, or leave it out for all cores")
    if not isinstance(scaled_jpeg, bool):
        raise OptionError(f"scaled_jpeg is {scaled_jpeg!r}: give True or False")
    opened = contract.read(contract.embedded() if bundle is None else bundle)
    return Model(opened, backends.create(backend, opened, threads, device, engines), scaled_jpeg)


class Model:
    """A loaded bundle. Every method may be called from any thread.

    One image (or text) gives one result, a list gives a list; what an image may be says blip2rt.image.
    Every method raises ImageError for a bad image, OptionError for bad options and texts (all faults at once),
    CapabilityError where the bundle lacks the components, and BackendError when the engine fails.
    """

    def __init__(self, bundle: Bundle, backend: backends.BackendLike, scaled_jpeg: bool = False) -> None:
        self.bundle = bundle
        self._scaled_jpeg = scaled_jpeg
        self._manifest = bundle.manifest
        self._backend = backend

    def caption(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        prompt: str | None = None,
        scores: bool = False,
        on_token: OnToken | None = None,
        **options: Any,
    ) -> Any:
        """Image -> caption, list of images -> list of captions.

        prompt: words that the caption goes on from, not repeated in it; None is the bundle's own.
        options: the fields of blip2rt.options.Options, with the meaning of Hugging Face's `generate`. num_captions
            above 1 gives a list of str for each image: the best first, with do_sample and 1 beam in the order drawn.
        scores: gives Scored(text, score) in place of each str.
        on_token(image, draw, token_id): called for each token as it is chosen, by greedy search (num_beams=1) or
            sampling; returning False ends the images decoded together (8 at most) with what there is.
        """
        many, single = as_list(images)
        results = list(self.caption_each(many, prompt=prompt, scores=scores, on_token=on_token, **options))
        return results[0] if single else results

    def caption_each(
        self,
        images: Iterable[ImageLike],
        *,
        prompt: str | None = None,
        keep_going: bool = False,
        scores: bool = False,
        on_token: OnToken | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Captions of any number of images, in order and as they come; a few images are in memory at a time.

        keep_going: a bad image's ImageError takes the place of its caption instead of being raised.
        The options are those of `caption`; they are checked before the first image is read.
        """
        self._need(contract.GENERATIVE, "caption")
        text = self._language.caption_prompt(prompt)
        settings = self._language.settings("caption", merge(Options(), options), [text])
        _check_on_token(on_token, settings)
        if isinstance(images, str | bytes | os.PathLike) or is_file(images) or not isinstance(images, Iterable):
            raise ImageError(
                f"caption_each takes images one by one, not {type(images).__name__}: give a list, or call caption"
            )
        return self._generate_each(images, repeat((text, text)), settings, scores, keep_going, on_token)

    def ask(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        *,
        scores: bool = False,
        on_token: OnToken | None = None,
        **options: Any,
    ) -> Any:
        """Image and question -> answer. Lists are taken pairwise; one image or one question goes with all of a list.

        The question is put into the bundle's template; a Q-Former that reads questions reads it too. Options, scores
        and on_token are those of `caption`.
        """
        self._need(contract.GENERATIVE, "ask")
        many_images, many_questions, single = pairs(images, questions, "questions")
        prompts = [self._language.ask_prompt(question) for question in many_questions]
        settings = self._language.settings("ask", merge(Options(), options), prompts)
        _check_on_token(on_token, settings)
        asked = zip(prompts, map(self._read_question, many_questions), strict=True)
        answers = list(self._generate_each(many_images, asked, settings, scores, False, on_token))
        return answers[0] if single else answers

    def stream(
        self, image: ImageLike, prompt: str | None = None, *, question: str | None = None, **options: Any
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
        read = text if question is None else self._read_question(question)
        return self._language.stream(self._prefix_embeds(self._prepare([image]), [read]), text, settings)

    def chat(self, image: ImageLike, **options: Any) -> Chat:
        """Image -> conversation about it, in which a question costs only its own tokens; see Chat.

        The options are those of `caption` and hold for every question that says nothing else.
        """
        self._need(contract.GENERATIVE, "chat")
        if not self._language.can_chat:
            raise CapabilityError(
                f"bundle {self._manifest.name!r} cannot chat: its language model is an encoder-decoder; "
                "use ask, with what was said in the question"
            )
        if self._manifest.question is not None:
            raise CapabilityError(
                f"bundle {self._manifest.name!r} cannot chat: its Q-Former looks at the image anew for every question; "
                "use ask, with what was said in the question"
            )
        chosen = merge(Options(), options)
        self._language.settings("ask", chosen, [])  # checked before the image is read
        return Chat(self._language, self._prefix_embeds(self._prepare([image]), [""]), chosen)

    def match(self, images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str]) -> Any:
        """Image and text -> Match. Lists are taken pairwise; one image or one text goes with all of a list.

        Texts too long for the model are cut.
        """
        self._need(contract.RETRIEVAL, "match")
        many_images, many_texts, single = pairs(images, texts, "texts")
        if not all(any(map(str.isalnum, text)) for text in many_texts):
            raise OptionError("a text has no words: say what the image may show, as in 'a dog on grass'")
        matches: list[Match] = []
        for start in range(0, len(many_images), BATCH):
            chunk = slice(start, start + BATCH)
            vision_features = self._vision_features(self._prepare(many_images[chunk]))
            matches += self.match_features(vision_features, many_texts[chunk])
        return matches[0] if single else matches

    def vision_features(self, images: ImageLike | Sequence[ImageLike]) -> Floats:
        """Image -> (N, C) float32, list of images -> (B, N, C): kept, they spare match_features the encoder."""
        many, single = as_list(images)
        chunks = [
            self._vision_features(self._prepare(many[start : start + BATCH])) for start in range(0, len(many), BATCH)
        ]
        features = np.concatenate(chunks) if chunks else self._empty(contract.VISION)
        return features[0] if single else features

    def match_features(self, vision_features: Floats, texts: Sequence[str]) -> list[Match]:
        """vision_features (B, N, C) and B texts -> B matches, pairwise."""
        itm_logits = self.itm_logits(vision_features, texts)
        image_embeds = self._backend.image_embeds(vision_features)  # (B, Q, E)
        text_embeds = self._backend.text_embeds(*self._qformer_tokenizer.encode(list(texts)))  # (B, E)
        cosine = np.einsum("bqe,be->bq", image_embeds, text_embeds).max(axis=1)
        probability = 1 / (1 + np.exp(itm_logits[:, 0].astype(np.float64) - itm_logits[:, 1]))
        columns = (probability, cosine, self.match_scores(itm_logits, cosine))
        return [Match(*map(float, row)) for row in zip(*columns, strict=True)]

    def match_scores(self, itm_logits: Floats, cosine: Floats) -> NDArray[np.float64]:
        """Match.score (B) of the matching head's logits (B, 2) and the cosines (B)."""
        self._need(contract.RETRIEVAL, "match")
        return match_scores(itm_logits, cosine, self._retrieval.itm_weight, self._retrieval.temperature)

    def itm_logits(self, vision_features: Floats, texts: Sequence[str]) -> Floats:
        """vision_features (B, N, C) and B texts -> (B, 2), pairwise: the matching head's "no match" and "match"."""
        self._need(contract.RETRIEVAL, "match")
        return self._backend.itm_logits(vision_features, *self._qformer_tokenizer.encode(list(texts)))

    def embed_image(self, images: ImageLike | Sequence[ImageLike]) -> Floats:
        """Image -> (Q, E) float32, list of images -> (B, Q, E): an embedding of unit length for each query."""
        self._need((contract.IMAGE_EMBED,), "embed_image")
        many, single = as_list(images)
        chunks = [
            self.embed_features(self._vision_features(self._prepare(many[start : start + BATCH])))
            for start in range(0, len(many), BATCH)
        ]
        embeds = np.concatenate(chunks) if chunks else self._empty(contract.IMAGE_EMBED)
        return embeds[0] if single else embeds

    def embed_features(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> (B, Q, E): what embed_image makes of their images."""
        self._need((contract.IMAGE_EMBED,), "embed_features")
        return self._backend.image_embeds(vision_features)

    def embed_text(self, texts: str | Sequence[str]) -> Floats:
        """Text -> (E,) float32 of unit length, list of texts -> (B, E). Texts too long for the model are cut."""
        self._need((contract.TEXT_EMBED,), "embed_text")
        many, single = texts_of(texts, "texts")
        chunks = [
            self._backend.text_embeds(*self._qformer_tokenizer.encode(many[start : start + BATCH]))
            for start in range(0, len(many), BATCH)
        ]
        embeds = np.concatenate(chunks) if chunks else self._empty(contract.TEXT_EMBED)
        return embeds[0] if single else embeds

    # The path of the data.

    def _generate_each(
        self,
        images: Iterable[ImageLike],
        prompts: Iterator[tuple[str, str]],
        settings: dict[str, Any],
        scores: bool,
        keep_going: bool,
        on_token: OnToken | None,
    ) -> Iterator[Any]:
        """For each image its text (Scored with `scores`; a list where several are wanted), or its ImageError.

        prompts: for each image what the language model reads, and what the Q-Former does, where it reads at all.
        """
        source = iter(images)
        done = 0
        while chunk := list(islice(source, BATCH)):
            texts = list(islice(prompts, len(chunk)))
            prepared = self._prepare(chunk, keep_going)
            good = [i for i, rgb in enumerate(prepared) if not isinstance(rgb, ImageError)]
            results: list[Any] = list(prepared)
            if good:
                prefix_embeds = self._prefix_embeds([prepared[i] for i in good], [texts[i][1] for i in good])
                tell = None if on_token is None else _renumbered(on_token, [done + i for i in good])
                best = self._language.generate(prefix_embeds, [texts[i][0] for i in good], settings, done, tell)
                for i, scored in zip(good, best, strict=True):
                    captions = scored if scores else [one.text for one in scored]
                    results[i] = captions if settings["num_return_sequences"] > 1 else captions[0]
            yield from results
            done += len(chunk)

    def _read_question(self, question: str) -> str:
        """What the Q-Former reads of a question, where it does."""
        spec = self._manifest.question
        return "" if spec is None else spec.prompt.replace("{}", question.strip())

    def _prefix_embeds(self, prepared: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> Floats:
        """RGB images, and the text that the Q-Former reads with each, where it does -> prefix_embeds (B, Q, D)"""
        self._backend.preload(contract.LLM)  # the largest graph loads while the image goes through the others
        question = None if self._question_tokenizer is None else self._question_tokenizer.encode(texts)
        return self._backend.prefix_embeds(self._vision_features(prepared), question)

    def _prepare(self, images: Sequence[ImageLike], keep_going: bool = False) -> list[Any]:
        """Images -> RGB (height, width, 3) uint8 each; the same object given twice is decoded once."""
        done: dict[int, Any] = {}
        for image in images:
            if id(image) not in done:
                try:
                    done[id(image)] = prepare(image, self._manifest.image, scaled=self._scaled_jpeg)
                except ImageError as error:
                    if not keep_going:
                        raise
                    done[id(image)] = error
        return [done[id(image)] for image in images]

    def _vision_features(self, prepared: Sequence[NDArray[np.uint8]]) -> Floats:
        """RGB images -> vision_features (B, N, C); the same array given twice goes through the encoder once."""
        unique = {id(rgb): rgb for rgb in prepared}
        vision_features = self._backend.vision(normalize(np.stack(list(unique.values())), self._manifest.image))
        if len(unique) == len(prepared):
            return vision_features
        row = {key: i for i, key in enumerate(unique)}
        return vision_features[[row[id(rgb)] for rgb in prepared]]

    # What the bundle holds.

    def _need(self, components: Sequence[str], what: str) -> None:
        missing = [name for name in components if not self.bundle.has(name)]
        if missing:
            stage = 2 if missing[0] in contract.GENERATIVE else 1
            raise CapabilityError(
                f"bundle {self._manifest.name!r} cannot {what}: it lacks {', '.join(missing)}; "
                f"export it again with a stage-{stage} checkpoint"
            )

    @property
    def _retrieval(self) -> RetrievalSpec:
        assert self._manifest.retrieval is not None, (
            "reading the bundle checks that retrieval comes with its components"
        )
        return self._manifest.retrieval

    @cached_property
    def _language(self) -> Language:
        return Language(self.bundle, self._backend)

    @cached_property
    def _qformer_tokenizer(self) -> QFormerTokenizer:
        return QFormerTokenizer(self.bundle.file(self._retrieval.tokenizer), self._retrieval)

    @cached_property
    def _question_tokenizer(self) -> QFormerTokenizer | None:
        spec = self._manifest.question
        return None if spec is None else QFormerTokenizer(self.bundle.file(spec.tokenizer), spec)

    def _empty(self, component: str) -> Floats:
        """A batch of no rows, of the shape of the component's first output."""
        shape = self._manifest.components[component].outputs[0].shape
        return np.zeros([0, *(size if isinstance(size, int) else 0 for size in shape[1:])], np.float32)


def _check_on_token(on_token: OnToken | None, settings: dict[str, Any]) -> None:
    if on_token is not None and not callable(on_token):
        raise OptionError(f"on_token is {on_token!r}: give a function of image, draw and token_id")
    if on_token is not None and settings["num_beams"] > 1:
        raise OptionError(
            f"on_token with num_beams {settings['num_beams']}: beams settle on tokens only at the end; give num_beams=1"
        )


def _renumbered(on_token: OnToken, numbers: list[int]) -> OnToken:
    """on_token of images that have other numbers for the caller."""
    return lambda image, draw, token_id: on_token(numbers[image], draw, token_id)
