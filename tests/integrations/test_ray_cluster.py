"""`caption --ray` and `capfilt --ray` on Ray itself: the bytes of local runs, whatever is killed."""

import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip2rt.errors import OptionError
from blip2rt.integrations.ray_cluster import ActorPool, Call, Workers, import_ray, node_name, take_resources
from tests.gallery.helpers import POSIX, TIMEOUT
from tests.seeds import new_seed
from tests.tiny.image_folders import fill

try:
    ray = import_ray()  # sets the mode of its tokens, which the first import reads
except OptionError:
    pytest.skip("Ray is not installed", allow_module_level=True)
pytestmark = POSIX
PHOTO = Path(__file__).parents[2] / "docs" / "photo.jpg"
ROUNDS = 20  # of a node that dies


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node that runs nothing; see `set_nodes`."""
    started = start_head(attempts=4)
    try:
        yield started
    finally:
        started.shutdown()


def start_head(attempts: int) -> Any:
    """Ray gives a node 30 s to start; a busy machine needs another attempt."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}
    try:
        return Cluster(initialize_head=True, head_node_args=head)
    except Exception as error:  # that is all the type there is
        if attempts == 1 or "timed out" not in str(error).lower():
            raise
        return start_head(attempts - 1)


def add_node(cluster: Any, cpus: int = 1, gpus: int = 0) -> None:
    """gpus: that Ray believes in."""
    cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=100 << 20)


def set_nodes(cluster: Any, count: int, cpus: int = 1, gpus: int = 0) -> None:
    """Replace the nodes that run workers."""
    while cluster.worker_nodes:
        kill_node(cluster)
    for _ in range(count):
        add_node(cluster, cpus, gpus)


def kill_node(cluster: Any) -> None:
    """Kill a node that workers run on."""
    cluster.remove_node(random.choice(list(cluster.worker_nodes)), allow_graceful=False)


class Worker:
    """Tells what it may use."""

    def start(self) -> str:
        take_resources()
        return node_name(ray)

    def run(self) -> tuple[str, ...]:
        time.sleep(1)  # another worker gets the next call
        return tuple(os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "BLIP2RT_NUM_THREADS"))


@pytest.mark.long(20, "processors and GPUs of a real Ray")
def test_workers_have_gpus_and_threads_of_their_own(cluster):
    set_nodes(cluster, 1, cpus=2, gpus=2)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this module
    for gpus, expected in ((1.0, {("0", "1", "1"), ("1", "1", "1")}), (0.0, {("", "1", "1")})):
        found = set[tuple[str, ...]]()
        with ActorPool(Workers(cluster.address, gpus=gpus), Worker, (), queued=1) as pool:
            for call in pool.map(Call(second, ()) for second in range(TIMEOUT)):
                found.add(call.result)
                if len(found) == len(expected):
                    break
        assert found == expected


@pytest.mark.long(30, "actors of a real Ray, on a node that dies")
def test_nano_and_its_pool_caption_locally_and_on_nodes_that_come_and_go(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for turn in range(8):
        Image.open(PHOTO).rotate(45 * turn).save(f"photos/{turn}.png")
    Path("photos/bad.jpg").write_bytes(b"not a picture")
    command = [sys.executable, "-m", "blip2rt", *"caption -r photos --min-confidence 0.5 --batch-size 1".split()]
    assert subprocess.run([*command, "--out", "local.jsonl"], timeout=TIMEOUT, check=False).returncode == 1
    set_nodes(cluster, 1, cpus=2)
    driver = start([*command, "--out", "t.jsonl", "--ray", cluster.address])
    wait_until(lambda: size_of("t.jsonl") > 0, driver)
    kill_node(cluster)
    add_node(cluster)
    _, error = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == 1 and Path("t.jsonl").read_bytes() == Path("local.jsonl").read_bytes(), error
    assert lost_nodes(error) and "Traceback" not in error


def caption(folder: Path, tiny: Path, *arguments: str) -> list[str]:
    common = ["--out", "t.jsonl", "--batch-size", "4", "--model", str(tiny), *arguments]
    return [sys.executable, "-m", "blip2rt", "caption", "-r", str(folder), *common]


def lost_nodes(error: str) -> list[str]:
    """The lines about lost nodes, one for each; a busy machine loses more than the test ends."""
    lines = [line for line in error.splitlines() if line.endswith("died: its work runs again on another")]
    assert len(set(lines)) == len(lines), error
    return lines


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def size_of(name: str) -> int:
    return Path(name).stat().st_size if Path(name).exists() else 0


def wait_until(reached: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    end = time.monotonic() + TIMEOUT
    while not reached():
        assert driver.poll() is None and time.monotonic() < end, driver.communicate()
        time.sleep(0.02)


def workers(name: str = "BatchWorker") -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"ray::{name}"], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def test_random_deaths_of_nodes_change_no_byte(cluster, tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random.seed(new_seed())
    for number in range(12):
        fill(tmp_path / "album" / str(number), number)
    code = subprocess.run(caption(tmp_path / "album", tiny.path), check=False, timeout=TIMEOUT).returncode
    local = Path("t.jsonl").read_bytes()
    set_nodes(cluster, 2)
    seconds = 0.0  # of a run that nothing disturbs
    for turn in range(1 + ROUNDS):
        Path("t.jsonl").unlink()
        began, driver = time.monotonic(), start(caption(tmp_path / "album", tiny.path, "--ray", cluster.address))
        if turn:
            time.sleep(random.uniform(0, seconds))
            kill_node(cluster)
            add_node(cluster)
        _, error = driver.communicate(timeout=TIMEOUT)
        assert Path("t.jsonl").read_bytes() == local and driver.returncode == code, error
        lost_nodes(error)
        seconds = seconds or time.monotonic() - began


@pytest.mark.long(15, "a real Ray, whose actor and driver die")
def test_killed_actor_and_driver_lose_nothing(tmp_path, tiny, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        fill(tmp_path / "album" / str(number), number)
    subprocess.run(caption(tmp_path / "album", tiny.path), check=False, timeout=TIMEOUT)
    local = Path("t.jsonl").read_bytes()
    Path("t.jsonl").unlink()
    set_nodes(cluster, 2)
    command = caption(tmp_path / "album", tiny.path, "--ray", cluster.address)
    driver = start(command)
    wait_until(lambda: size_of("t.jsonl") > 0, driver)
    for pid in workers()[:1]:
        os.kill(pid, signal.SIGKILL)
    size = size_of("t.jsonl")
    wait_until(lambda: size_of("t.jsonl") > size, driver)
    driver.kill()
    driver.communicate()
    subprocess.run(command, check=False, timeout=TIMEOUT)
    assert Path("t.jsonl").read_bytes() == local


def test_killed_capfilt_worker_loses_nothing(tmp_path, tiny, cluster, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    for number in range(3):
        fill(tmp_path / "album" / str(number), number)
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as tar:
            for copy in range(8):
                tar.add(tmp_path / "album" / str(number) / "a.png", f"{copy}.png")
    command = [sys.executable, "-m", "blip2rt_train.prepare", "capfilt", "--data", "shards", "--batch-size", "1"]
    command += ["--captioner", str(tiny.path)]
    subprocess.run([*command, "--out", "local"], check=True, timeout=TIMEOUT)
    set_nodes(cluster, 2)
    driver = start([*command, "--out", "cluster", "--ray", cluster.address])
    wait_until(lambda: any(file.stat().st_size for file in Path("cluster").glob("*.jsonl")), driver)
    for pid in workers("ShardWorker")[:1]:
        os.kill(pid, signal.SIGKILL)
    assert driver.communicate(timeout=TIMEOUT) and driver.returncode == 0
    for file in Path("local").iterdir():
        assert (Path("cluster") / file.name).read_bytes() == file.read_bytes()
