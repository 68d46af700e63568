"""Runs the batches of `caption --ray` and `index --ray` on the actors of a Ray cluster.

The driver walks the sources, skips what the outputs have, and writes in order: resuming, failures and bytes are those
of a local run, because the batches are. Actors read files by their paths, so every node needs the same file system;
URLs are read by Ray's own readers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import OptionError
from ..gallery.prefetch import Batch, cut_batches, decode
from ..gallery.sources import Failure, Picture, Sources, is_url
from ..gallery.walk import walk
from ..loading import load
from .ray_cluster import ActorPool, Call, Workers, import_ray, last_line, node_name, take_resources

if TYPE_CHECKING:
    from ..gallery.prefetch import MakeTask

T = TypeVar("T")

_READ_TASK = {"num_cpus": 0}  # the actors hold every processor
_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
_NAMES = ("image", "name", "path", "url", "__key__", "key")  # columns of a Parquet file, the first that is there
_BYTES = ("bytes", "image", "jpg", "jpeg", "png", "webp")  # bytes, or structs with a field `bytes`


class RayExecutor(ActorPool):
    """Actors of a cluster, for a `with` block. Raises OptionError if the cluster cannot be reached."""

    def __init__(self, workers: Workers, model: str | None, settings: dict[str, Any]) -> None:
        path = None if model is None else os.path.abspath(model)
        super().__init__(workers, BatchWorker, (path, settings), queued=2)

    def walk(self, sources: Sources) -> Iterator[Picture | Failure]:
        """Yield the pictures of `sources`, as gallery.walk does, and those of URLs."""
        for path in sources.paths:
            if is_url(path):
                yield from _read_url(self.ray, path)
            else:
                yield from walk(Sources((path,), (), sources.recursive))
        if sources.lists:
            yield from walk(Sources((), sources.lists, sources.recursive))

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
    path = picture.path if picture.data is not None else os.path.abspath(picture.path)
    return Picture(picture.name, path, picture.offset, picture.size, picture.data)


def _read_url(ray: Any, url: str) -> Iterator[Picture]:
    """Read pictures of shards (.tar) and files by Ray's readers, and of tables (.parquet)."""
    name = url.partition("?")[0].rstrip("*").rstrip("/")  # after ?: options of the file system
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        if name.endswith(".tar"):
            data = ray.data.read_webdataset(url, decoder=None, include_paths=True, ray_remote_args=_READ_TASK)
            yield from filter(None, map(_from_sample, data.iter_rows()))
        elif name.endswith(".parquet"):
            yield from map(_from_row, _table_rows(url))
        else:
            for row in ray.data.read_binary_files(url, include_paths=True, ray_remote_args=_READ_TASK).iter_rows():
                yield Picture(row["path"], row["path"], data=row["bytes"])
    except (OSError, ValueError, ImportError) as error:
        fix = "check the URL, its credentials, and that its file system's package is installed"
        raise OptionError(f"cannot read {url!r} ({last_line(error)}): {fix}") from None


def _table_rows(url: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file or folder. Ray's own reader waits for a processor, and the actors hold all."""
    from pyarrow import dataset, fs

    system, path = fs.FileSystem.from_uri(url)
    table = dataset.dataset(path, filesystem=system, format="parquet")
    for batch in table.to_batches(batch_size=64, batch_readahead=1, fragment_readahead=1):
        yield from batch.to_pylist()


def _from_sample(sample: dict[str, Any]) -> Picture | None:
    """The picture of a shard's sample, if it has one, named as in a local run: shard, key, extension."""
    from ..untrusted.image_format import has_image_name

    for extension, value in sample.items():
        if isinstance(value, bytes) and has_image_name(f"x.{extension}"):
            name = f"{sample['path']}/{sample['__key__']}.{extension}"
            return Picture(name, name, data=value)
    return None


def _from_row(row: dict[str, Any]) -> Picture:
    data = next((_bytes_of(row[name]) for name in _BYTES if _bytes_of(row.get(name)) is not None), None)
    name = next((row[name] for name in _NAMES if isinstance(row.get(name), str)), None)
    if data is None or name is None:
        columns = ", ".join(row)
        raise ValueError(f"it has the columns {columns}: name them {_BYTES[0]} and {_NAMES[0]}")
    return Picture(name, name, data=data)


def _bytes_of(value: Any) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None
