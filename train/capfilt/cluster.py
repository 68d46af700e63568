"""CapFilt on a Ray cluster: `prepare capfilt --ray`. Each task is the command itself, claiming shards one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from blip2rt.errors import OptionError


def run_tasks(address: str, command: Callable[[list[str]], int], arguments: Sequence[str]) -> None:
    """Run `command(arguments)` once per processor of a cluster, in this working directory. Raises OptionError.

    Every node needs the same file system. Ray repeats a task that dies; its shard resumes where it stopped.
    """
    from blip2rt.integrations.ray import import_ray
    from blip2rt.integrations.ray_executor import connect

    ray = import_ray()
    connect(ray, address)
    folder = os.getcwd()

    def work() -> int:
        os.chdir(folder)
        return command(list(arguments))

    try:
        count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        task = ray.remote(num_cpus=1, max_retries=-1)(work)
        codes = ray.get([task.remote() for _ in range(count)])
    finally:
        ray.shutdown()
    if any(codes):
        raise OptionError(f"{sum(map(bool, codes))} of {count} tasks failed: run the command without --ray to see why")
