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
from .bundle import Bundle
from .errors import CapabilityError, ImageError, OptionError
from .image import ImageLike, normalize, prepare
from .manifest import Decoding, LlmSpec, RetrievalSpec
from .options import Options, is_whole, resolve
from .text import LlmTokenizer, QFormerTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

BATCH = 8  # images that go through the graphs together


@dataclass(frozen=True)
class Match:
    """How well a text describes an image."""

    probability: float  # of "match", by the image-text matching head; 0 to 1
    cosine: float  # of the text's embedding and the nearest query's; -1 to 1
    score: float  # the sum of both as logits: log(p / (1 - p)) + cosine / temperature


def load(bundle: str | os.PathLike[str] | None = None, *, backend: str = "ort", threads: int | None = None) -> Model:
    """Opens a bundle; None is the embedded model, "nano". Its graphs are loaded when they are first needed.

    threads: how many an operator may use; None asks BLIP2RT_NUM_THREADS, then ONNX Runtime takes every physical core.
    Raises BundleError (missing, damaged, too new), BackendError (unknown name), OptionError (threads).
    """
    if threads is not None and not is_whole(threads, 1, 1024):
        raise OptionError(f"threads is {threads!r}: give a whole number from 1 to 1024, or None for all cores")
    opened = contract.read(contract.embedded() if bundle is None else bundle)
    return Model(opened, backends.create(backend, opened, threads))


class Model:
    """A loaded bundle. Every method may be called from any thread.

    One image (or text) gives one result, a list gives a list; what an image may be says blip2rt.image.
    Every method raises ImageError for a bad image, OptionError for bad options and texts (all faults at once),
    CapabilityError where the bundle lacks the components, and BackendError when the engine fails.
    """

    def __init__(self, bundle: Bundle, backend: backends.BackendLike) -> None:
        self.bundle = bundle
        self._manifest = bundle.manifest
        self._backend = backend

    def caption(
        self, images: ImageLike | Sequence[ImageLike], *, prompt: str | None = None, num_captions: int = 1,
        num_beams: int | None = None, max_new_tokens: int | None = None, min_new_tokens: int | None = None,
        length_penalty: float | None = None,
    ) -> Any:  # fmt: skip
        """Image -> caption, list of images -> list of captions. Options left at None are the bundle's defaults.

        prompt: words that the caption goes on from, not repeated in it; None is the bundle's own.
        num_captions: 1 gives a str for each image, more a list of str, the best first.
        num_beams, max_new_tokens, min_new_tokens, length_penalty: as Hugging Face's `generate`; 1 beam is greedy.
        """
        many, single = _as_list(images)
        results = list(
            self.caption_each(
                many, prompt=prompt, num_captions=num_captions, num_beams=num_beams, max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens, length_penalty=length_penalty,
            )
        )  # fmt: skip
        return results[0] if single else results

    def caption_each(
        self, images: Iterable[ImageLike], *, prompt: str | None = None, keep_going: bool = False, **options: Any
    ) -> Iterator[Any]:
        """Captions of any number of images, in order and as they come; a few images are in memory at a time.

        keep_going: a bad image's ImageError takes the place of its caption instead of being raised.
        The options are those of `caption`; they are checked before the first image is read.
        """
        self._need(contract.GENERATIVE, "caption")
        text = self._manifest.prompts.get("caption", "") if prompt is None else prompt
        prompt_ids = self._llm_tokenizer.encode(text)
        settings = self._settings("caption", Options(**options), len(prompt_ids))
        return self._generate_each(images, repeat(prompt_ids), settings, keep_going)

    def ask(
        self, images: ImageLike | Sequence[ImageLike], questions: str | Sequence[str], *, num_beams: int | None = None,
        max_new_tokens: int | None = None, min_new_tokens: int | None = None, length_penalty: float | None = None,
    ) -> Any:  # fmt: skip
        """Image and question -> answer. Lists are taken pairwise; one image or one question goes with all of a list.

        The question is put into the bundle's template; the options are those of `caption`.
        """
        self._need(contract.GENERATIVE, "ask")
        many_images, many_questions, single = _pairs(images, questions, "questions")
        if any(not question.strip() for question in many_questions):
            raise OptionError("a question is empty: ask something, as in 'what colour is the dog?'")
        template = self._manifest.prompts.get("ask", "{}")
        prompts = [self._llm_tokenizer.encode(template.replace("{}", question.strip())) for question in many_questions]
        options = Options(1, num_beams, max_new_tokens, min_new_tokens, length_penalty)
        settings = self._settings("ask", options, max(map(len, prompts), default=0))
        answers = list(self._generate_each(many_images, iter(prompts), settings, keep_going=False))
        return answers[0] if single else answers

    def match(self, images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str]) -> Any:
        """Image and text -> Match. Lists are taken pairwise; one image or one text goes with all of a list."""
        self._need(contract.RETRIEVAL, "match")
        many_images, many_texts, single = _pairs(images, texts, "texts")
        matches: list[Match] = []
        for start in range(0, len(many_images), BATCH):
            chunk = slice(start, start + BATCH)
            vision_features = self._vision_features(self._prepare(many_images[chunk]))
            matches += self.match_features(vision_features, many_texts[chunk])
        return matches[0] if single else matches

    def vision_features(self, images: ImageLike | Sequence[ImageLike]) -> Floats:
        """Image -> (N, C) float32, list of images -> (B, N, C): kept, they spare match_features the encoder."""
        many, single = _as_list(images)
        chunks = [
            self._vision_features(self._prepare(many[start : start + BATCH])) for start in range(0, len(many), BATCH)
        ]
        features = np.concatenate(chunks) if chunks else self._empty(contract.VISION)
        return features[0] if single else features

    def match_features(self, vision_features: Floats, texts: Sequence[str]) -> list[Match]:
        """vision_features (B, N, C) and B texts -> B matches, pairwise."""
        self._need(contract.RETRIEVAL, "match")
        token_ids, text_mask = self._qformer_tokenizer.encode(list(texts))
        image_embeds = self._backend.image_embeds(vision_features)  # (B, Q, E)
        text_embeds = self._backend.text_embeds(token_ids, text_mask)  # (B, E)
        itm_logits = self._backend.itm_logits(vision_features, token_ids, text_mask)  # (B, 2)
        cosine = np.einsum("bqe,be->bq", image_embeds, text_embeds).max(axis=1)
        log_odds = itm_logits[:, 1].astype(np.float64) - itm_logits[:, 0]
        score = log_odds + cosine / self._retrieval.temperature
        columns = (1 / (1 + np.exp(-log_odds)), cosine, score)
        return [Match(*map(float, row)) for row in zip(*columns, strict=True)]

    def embed_image(self, images: ImageLike | Sequence[ImageLike]) -> Floats:
        """Image -> (Q, E) float32, list of images -> (B, Q, E): an embedding of unit length for each query."""
        self._need((contract.IMAGE_EMBED,), "embed_image")
        many, single = _as_list(images)
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
        many = [texts] if isinstance(texts, str) else list(texts)
        chunks = [
            self._backend.text_embeds(*self._qformer_tokenizer.encode(many[start : start + BATCH]))
            for start in range(0, len(many), BATCH)
        ]
        embeds = np.concatenate(chunks) if chunks else self._empty(contract.TEXT_EMBED)
        return embeds[0] if isinstance(texts, str) else embeds

    # The path of the data.

    def _generate_each(
        self, images: Iterable[ImageLike], prompts: Iterator[list[int]], settings: dict[str, Any], keep_going: bool
    ) -> Iterator[Any]:
        """For each image its text (a list of texts where several are wanted), or its ImageError."""
        source = iter(images)
        while chunk := list(islice(source, BATCH)):
            prompt_ids = list(islice(prompts, len(chunk)))
            prepared = self._prepare(chunk, keep_going)
            good = [i for i, rgb in enumerate(prepared) if not isinstance(rgb, ImageError)]
            results: list[Any] = list(prepared)
            if good:
                self._backend.preload(contract.LLM)  # the largest graph loads while the image goes through the others
                vision_features = self._vision_features([prepared[i] for i in good])
                prefix_embeds = self._backend.prefix_embeds(vision_features)
                sequences = self._backend.generate(prefix_embeds, [prompt_ids[i] for i in good], settings)
                for i, best in zip(good, sequences, strict=True):
                    texts = [self._llm_tokenizer.decode(token_ids) for token_ids, _score in best]
                    results[i] = texts if settings["num_return_sequences"] > 1 else texts[0]
            yield from results

    def _prepare(self, images: Sequence[ImageLike], keep_going: bool = False) -> list[Any]:
        """Images -> RGB (height, width, 3) uint8 each; the same object given twice is decoded once."""
        done: dict[int, Any] = {}
        for image in images:
            if id(image) not in done:
                try:
                    done[id(image)] = prepare(image, self._manifest.image)
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

    def _settings(self, task: str, options: Options, prompt_length: int) -> dict[str, Any]:
        """The generator's options for a task."""
        room = self._llm.max_positions - self._llm.prefix_length - prompt_length
        settings = resolve(options, self._manifest.decoding.get(task, Decoding()), room)
        return {**settings, "eos_token_ids": list(self._llm.eos_token_ids)}

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
    def _llm(self) -> LlmSpec:
        assert self._manifest.llm is not None, "reading the bundle checks that llm comes with its components"
        return self._manifest.llm

    @property
    def _retrieval(self) -> RetrievalSpec:
        assert self._manifest.retrieval is not None, (
            "reading the bundle checks that retrieval comes with its components"
        )
        return self._manifest.retrieval

    @cached_property
    def _llm_tokenizer(self) -> LlmTokenizer:
        return LlmTokenizer(self.bundle.file(self._llm.tokenizer), self._llm)

    @cached_property
    def _qformer_tokenizer(self) -> QFormerTokenizer:
        return QFormerTokenizer(self.bundle.file(self._retrieval.tokenizer), self._retrieval)

    def _empty(self, component: str) -> Floats:
        """A batch of no rows, of the shape of the component's first output."""
        shape = self._manifest.components[component].outputs[0].shape
        return np.zeros([0, *(size if isinstance(size, int) else 0 for size in shape[1:])], np.float32)


def _as_list(images: Any) -> tuple[list[Any], bool]:
    """One image or several -> list, whether it was one."""
    if isinstance(images, list | tuple | Iterator):
        return list(images), False
    return [images], True


def _pairs(images: Any, texts: Any, name: str) -> tuple[list[Any], list[str], bool]:
    """Images and texts of equal number; a single one is repeated for a list of the other."""
    many_images, one_image = _as_list(images)
    many_texts, one_text = _as_list(texts)
    wrong = [type(text).__name__ for text in many_texts if not isinstance(text, str)]
    if wrong:
        raise OptionError(f"{name} hold {', '.join(sorted(set(wrong)))}: give a str or a list of str")
    if one_image and not one_text:
        many_images *= len(many_texts)
    if one_text and not one_image:
        many_texts *= len(many_images)
    if len(many_images) != len(many_texts):
        raise OptionError(
            f"{len(many_images)} images and {len(many_texts)} {name}: give as many of one as of the other"
        )
    return many_images, many_texts, one_image and one_text
