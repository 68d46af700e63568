"""Runs the batches of `caption --ray` and `index --ray` on the actors of a Ray cluster.

The driver walks the sources, skips what the outputs have, and writes in order: resuming, failures and bytes are those
of a local run, because the batches are. Actors read files by their paths, so every node needs the same file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..gallery.prefetch import Batch, cut_batches, decode
from ..gallery.sources import Failure, Picture
from ..loading import load
from .ray_cluster import ActorPool, Call, Workers, import_ray, node_name, take_resources

if TYPE_CHECKING:
    from ..gallery.prefetch import MakeTask

T = TypeVar("T")

_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


class RayExecutor(ActorPool):
    """Actors of a cluster, for a `with` block. Raises OptionError if the cluster cannot be reached."""

    def __init__(self, workers: Workers, model: str | None, settings: dict[str, Any]) -> None:
        path = None if model is None else os.path.abspath(model)
        super().__init__(workers, BatchWorker, (path, settings), queued=2)

    def run(
        self,
        walked: Iterable[Picture | Failure],
        plan: Callable[[Picture], T | Failure | None],
        batch_size: int,
        make_task: MakeTask | None = None,
    ) -> Iterator[tuple[Batch[T], Any]]:
        """Yield batches in order, each with what the graphs make of its images; see BatchWorker.run."""

        def call(batch: Batch[T]) -> Call[Batch[T]]:
            pictures = [_absolute(entry.picture) for entry in batch.needed]
            return Call(batch, (pictures, make_task, batch.first) if pictures else None)

        for done in self.map(map(call, cut_batches(walked, plan, batch_size))):
            batch, (errors, found) = done.item, done.result or ((), [])
            _add_results(batch, errors)
            yield batch, found if batch.has_work else []


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
            found = decode(self._model, picture)
            if isinstance(found, Failure):  # may name the path, which is absolute here
                errors.append(found.reason.replace(repr(picture.path)[1:-1], repr(picture.name)[1:-1]))
            else:
                rgb.append(found)
                errors.append(None)
        if not rgb:
            return errors, None
        if make_task is None:
            return errors, self._model.embed(rgb)
        return errors, self._model.generate(rgb, make_task(self._model), first)


def _add_results(batch: Batch[Any], errors: Sequence[str | None]) -> None:
    """Sort a batch's entries into images, whose pixels stayed in the actor, and failures."""
    for entry, error in zip(batch.needed, errors, strict=True):
        if error is None:
            batch.images.append((entry, _NO_PIXELS))
        else:
            batch.failures.append((entry.number, Failure(entry.picture.name, error)))
    batch.failures.sort(key=lambda pair: pair[0])


def _absolute(picture: Picture) -> Picture:
    """The picture as an actor finds it, whose working directory is another."""
    path = picture.path if picture.data is not None or picture.url else os.path.abspath(picture.path)
    return Picture(picture.name, path, picture.offset, picture.size, picture.data)
