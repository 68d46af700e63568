"""CapFilt on a Ray cluster: `prepare capfilt --ray`. Each worker loads the models once and filters shards."""

import os
from collections.abc import Callable, Sequence

from blip2rt.integrations.ray_cluster import ActorPool, Call, Workers, import_ray, node_name, take_resources

from ..data.samples import BadSamples
from ..data.shard_index import Shard
from ..progress import bar
from .datasets import FilterOptions, filter_shards


class ShardWorker:
    """The actor. The shard of a worker that dies resumes where it stopped."""

    def __init__(self, folder: str, out: Shard, open_options: Callable[[], FilterOptions]) -> None:
        """folder: where the command was called, on a file system that every node has."""
        self._folder, self._out, self._open = folder, out, open_options

    def start(self) -> str:
        """Open what all shards share and return this node's name."""
        os.chdir(self._folder)
        take_resources()
        self._options = self._open()
        return node_name(import_ray())

    def run(self, shard: Shard) -> tuple[int, dict[str, str]]:
        """Filter a shard. Return its number of images and all samples that were unusable so far, with the reasons."""
        return filter_shards([shard], self._out, self._options), self._options.bad.found


def filter_on_cluster(
    shards: Sequence[Shard], out: Shard, workers: Workers, open_options: Callable[[], FilterOptions], bad: BadSamples
) -> int:
    """Filter shards on the workers of a cluster and return the number of images. Raises OptionError, BackendError."""
    images = 0
    with ActorPool(workers, ShardWorker, (os.getcwd(), out, open_options), queued=1) as pool:
        for call in bar(pool.map(Call(shard, (shard,)) for shard in shards), total=len(shards), unit="shard"):
            written, found = call.result
            images += written
            for sample, reason in found.items():
                bad.add(sample, reason)
    return images
