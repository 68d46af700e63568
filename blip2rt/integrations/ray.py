"""Classes for Ray Data: `Captioner`, `Matcher` and `Embedder` add columns to a batch of images.

    import ray
    from blip2rt.integrations.ray import Captioner

    images = ray.data.read_webdataset("s3://bucket/shards/")
    captioned = images.map_batches(Captioner, concurrency=8, num_cpus=2, batch_size=16,
                                   fn_constructor_kwargs={"image": "jpg"})
    captioned.write_parquet("s3://bucket/captions/")

Each actor loads the model once, with as many threads as its `num_cpus`; with `num_gpus`, the backend is TensorRT. An
image is a column of bytes, paths or arrays. An image that cannot be read has its reason in the column `error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ImageError, OptionError
from ..loading import load
from .ray_cluster import import_ray, node_name, take_resources

if TYPE_CHECKING:
    from ..gallery.prefetch import MakeTask

    Batch = dict[str, Any]  # columns, each an array or a list of the batch's length


class _ImageColumn:
    """A model, and the column that has its images."""

    def __init__(self, model: str | None, image: str, settings: dict[str, Any]) -> None:
        backend = {"backend": "trt"} if take_resources() else {}
        self.model, self._image = load(model, **{**backend, **settings}), image

    def _prepare(self, batch: Batch) -> tuple[list[int], list[Any], list[str | None]]:
        """Return the numbers of the readable images, their pixels, and an error or None for every image."""
        if self._image not in batch:
            choices = ", ".join(map(repr, batch))
            raise OptionError(f"there is no column {self._image!r} of images: give image=, one of {choices}")
        numbers, rgb, errors = list[int](), list[Any](), list[str | None]()
        for number, value in enumerate(batch[self._image]):
            try:
                rgb.append(self.model.prepare(value))
                numbers.append(number)
                errors.append(None)
            except (ImageError, OSError) as error:
                errors.append(str(error))
        return numbers, rgb, errors


class Captioner(_ImageColumn):
    """Add the columns caption, captions (a list), score and error.

    question: write answers to it. prompt: text that captions continue. options: the fields of blip2rt.Options.
    settings: arguments of blip2rt.load.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        image: str = "bytes",
        prompt: str | None = None,
        question: str | None = None,
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, image, settings)
        self._task = self.model.task(prompt, question, **(options or {}))

    def __call__(self, batch: Batch) -> Batch:
        numbers, rgb, errors = self._prepare(batch)
        captions: list[list[str]] = [[] for _ in errors]
        scores = np.full(len(errors), np.nan, np.float32)
        for number, texts in zip(numbers, self.model.generate(rgb, self._task, 0) if rgb else [], strict=True):
            if texts is None:
                errors[number] = "max_time passed before the first word"
                continue
            captions[number], scores[number] = [str(text) for text in texts], texts[0].score
        first = [texts[0] if texts else None for texts in captions]
        return {**batch, "caption": first, "captions": captions, "score": scores, "error": errors}


class Matcher(_ImageColumn):
    """Add the columns score, probability and cosine of each image with a text, and error.

    text: the column of texts. settings: arguments of blip2rt.load.
    """

    def __init__(self, model: str | None = None, *, image: str = "bytes", text: str = "text", **settings: Any) -> None:
        super().__init__(model, image, settings)
        self._text = text

    def __call__(self, batch: Batch) -> Batch:
        numbers, rgb, errors = self._prepare(batch)
        found = np.full((3, len(errors)), np.nan, np.float32)
        if rgb:
            texts = [str(batch[self._text][number]) for number in numbers]
            for number, match in zip(numbers, self.model.match_features(self.model.features(rgb), texts), strict=True):
                found[:, number] = match.score, match.probability, match.cosine
        return {**batch, "score": found[0], "probability": found[1], "cosine": found[2], "error": errors}


class Embedder(_ImageColumn):
    """Add the columns embedding, (Q, E) float32 of unit vectors, zeros for an unreadable image, and error.

    settings: arguments of blip2rt.load.
    """

    def __init__(self, model: str | None = None, *, image: str = "bytes", **settings: Any) -> None:
        super().__init__(model, image, settings)

    def __call__(self, batch: Batch) -> Batch:
        from ..gallery.index_manifest import shape_of

        numbers, rgb, errors = self._prepare(batch)
        embeds = np.zeros((len(errors), *shape_of(self.model.bundle)), np.float32)
        if rgb:
            embeds[numbers] = self.model.embed(rgb)
        return {**batch, "embedding": embeds, "error": errors}


class BatchWorker:
    """The actor of `caption --ray` and `index --ray`: decodes pictures, and captions or embeds them."""

    def __init__(self, model: str | None, settings: dict[str, Any]) -> None:
        self._path, self._settings = model, settings

    def start(self) -> str:
        """Load the model and return this node's name."""
        take_resources()
        self._model = load(self._path, **self._settings)
        return node_name(import_ray())

    def run(self, pictures: Sequence[Any], make_task: MakeTask | None, first: int) -> tuple[list[str | None], Any]:
        """Return an error or None for each picture, and what the graphs make of the readable ones.

        make_task: makes a task for this actor's model, since tasks hold open sessions and cannot be sent; None: embed.
        first: number of the first picture, for its random numbers.
        """
        errors, rgb = list[str | None](), list[Any]()
        for picture in pictures:
            try:
                rgb.append(self._model.prepare(picture.source()))
                errors.append(None)
            except ImageError as error:  # names the path, which is absolute here
                errors.append(str(error).replace(repr(picture.path)[1:-1], repr(picture.name)[1:-1]))
            except OSError as error:
                errors.append(f"cannot read {picture.name!r}: {error.strerror}")
        if not rgb:
            return errors, None
        if make_task is None:
            return errors, self._model.embed(rgb)
        return errors, self._model.generate(rgb, make_task(self._model), first)
