"""`caption --ray` and `index --ray` on a stand-in of Ray: same bytes, resuming, failures."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from blip2rt.errors import OptionError
from blip2rt.integrations import ray_cluster
from blip2rt.integrations.ray_cluster import ActorPool, Workers
from blip2rt.integrations.ray_executor import BatchWorker
from tests.gallery.helpers import assert_error


class Handle:
    """An actor. A method's result is a function that computes it."""

    def __init__(self, ray: FakeRay, actor: Any) -> None:
        self.start = SimpleNamespace(remote=lambda: actor.start)
        self._ray, self._actor = ray, actor
        self.run = SimpleNamespace(remote=self._run)

    def _run(self, *sent: Any) -> Any:
        sent = pickle.loads(pickle.dumps(sent))  # as on its way to another process

        def compute() -> Any:
            if self._ray.deaths:
                self._ray.deaths -= 1
                raise self._ray.exceptions.RayError("a traceback\nThe actor died")
            self._ray.computed.append(sent[-1])
            return self._actor.run(*sent)

        return compute


class FakeRay(ModuleType):
    """The functions of Ray that are used, in this process. A result is computed when it is fetched."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.computed: list[int] = []
        self.deaths = 0  # calls whose actor dies
        self.resources = {"CPU": 2.0}
        self.started: list[dict[str, Any]] = []  # the resources of each actor
        error = type("RayError", (Exception,), {})
        self.exceptions = SimpleNamespace(RayError=error, RayTaskError=type("RayTaskError", (error,), {}))
        self.connected: dict[str, Any] = {}
        self.util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7")

    def init(self, **settings: Any) -> None:
        if settings["address"] == "nowhere:1":
            raise ConnectionError("a traceback\nRay is not there")
        self.connected = settings

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **options: Any) -> Any:
        def create(cls: type, *arguments: Any) -> Handle:
            self.started.append(options)
            return Handle(self, cls(*arguments))

        return lambda cls: SimpleNamespace(remote=partial(create, cls))

    def wait(self, results: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return results[:1], results[1:]

    def get(self, result: Any) -> Any:
        return result()

    def shutdown(self) -> None:
        self.connected = {}

    def get_runtime_context(self) -> Any:
        given = {"CPU": 1.0}
        return SimpleNamespace(
            get_actor_id=lambda: "1", get_assigned_resources=lambda: given, get_node_id=lambda: "8faeb1c2d3"
        )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    for name in ("BLIP2RT_NUM_THREADS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):  # which actors set
        monkeypatch.setenv(name, "1")
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


@pytest.mark.parametrize("out", ["t.jsonl", "t.csv"])
def test_caption_writes_the_bytes_of_a_local_run(album, run, ray, out):
    common = ["caption", "-r", "album", "--batch-size", 3, "--errors"]
    code, _, _ = run(*common, "e1", "--out", f"local-{out}")
    assert run(*common, "e2", "--out", out, "--ray", "auto")[0] == code == 1
    assert Path(out).read_bytes() == Path(f"local-{out}").read_bytes()
    assert Path("e1").read_text() == Path("e2").read_text() != ""
    assert not ray.connected, "the connection is closed"


def test_death_before_the_start_is_one_line(album, run, ray, caplog, monkeypatch):
    start, left = BatchWorker.start, [1, 1]
    monkeypatch.setattr(BatchWorker, "start", lambda self: start(self) if not left else die(left.pop()))

    def die(_: int) -> None:
        raise ray.exceptions.RayError("The actor died")

    assert run("caption", "-r", "album", "--out", "t.jsonl", "--errors", "e", "--ray", "auto")[0] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "a worker died before it was ready: another one starts"
    ]
    assert not ray.connected, "the connection is closed"


def test_work_of_dead_actors_runs_again(album, run, ray, caplog):
    run("caption", "-r", "album", "--batch-size", 1, "--out", "local.jsonl")
    ray.deaths = 5
    assert run("caption", "-r", "album", "--batch-size", 1, "--out", "t.jsonl", "--ray", "auto")[0] == 1
    assert Path("t.jsonl").read_bytes() == Path("local.jsonl").read_bytes()
    line = "a worker on node 10.0.0.7 (8faeb1c2) died: its work runs again on another"
    assert [record.getMessage() for record in caplog.records] == [line] and len(ray.started) > 2


def test_actors_that_always_die_are_one_line(album, run, ray):
    ray.deaths = 1000
    error = run("caption", "-r", "album", "--ray", "auto")[2]
    assert "workers die one after another (The actor died): give each more memory" in error


def test_workers_have_the_given_size(album, run, ray):
    index = ["index", "album", "--out", "x", "--batch-size", 1, "--ray", "auto"]
    run(*index, "--threads", 2)
    assert ray.started == [{"num_cpus": 2, "num_gpus": 0.0}] and os.environ["CUDA_VISIBLE_DEVICES"] == ""
    shutil.rmtree("x")
    ray.started.clear()
    run(*index, "--workers", 3)
    assert len(ray.started) == 3 and os.environ["BLIP2RT_NUM_THREADS"] == "1"
    assert_error(run(*index, "--gpus", 1), "--gpus is of the workers of --ray with --backend trt")
    with pytest.raises(OptionError, match="--gpus is 1.5: give a whole number, or a fraction"):
        Workers("auto", gpus=1.5)
    ray.started.clear()
    ray.resources = {"CPU": 16.0, "GPU": 2.0}
    with ActorPool(Workers("auto", threads=2, gpus=0.5), BatchWorker, (None, {}), queued=2) as pool:
        pool._start_actors()
    assert ray.started == [{"num_cpus": 2, "num_gpus": 0.5}] * 4


def test_resumed_run_computes_only_what_is_missing(album, run, ray):
    for name in ("bad.jpg", "cut.png"):  # the next run tries failures again
        (album / name).unlink()
    arguments = ["caption", "-r", "album", "--batch-size", 3, "--out", "t.jsonl", "--ray", "auto"]
    run(*arguments)
    whole, lines = Path("t.jsonl").read_bytes(), Path("t.jsonl").read_bytes().splitlines(keepends=True)
    Path("t.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:9])
    ray.computed.clear()
    run(*arguments)
    assert Path("t.jsonl").read_bytes() == whole and ray.computed == [6, 9]


def test_index_has_the_vectors_of_a_local_run(album, run, ray):
    run("index", "album", "--out", "x")
    run("index", "album", "--out", "y", "--ray", "auto")
    assert Path("x/vectors.i8").read_bytes() == Path("y/vectors.i8").read_bytes()
    assert "10 already done" in run("index", "album", "--out", "y", "--ray", "auto")[2]


def test_bad_addresses_and_urls_are_one_line(album, run, ray, monkeypatch):
    assert_error(
        run("caption", "-r", "album", "--ray", "nowhere:1"), "--ray 'nowhere:1' cannot be reached", "Ray is not"
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_error(run("caption", "-r", "album", "--ray", "auto"), "--ray needs Ray: pip install")
    assert_error(run("index", "album", "--out", "x", "--ray", "auto"), "--ray needs Ray: pip install")
    assert not Path("x").exists()


def test_local_cluster_has_a_bounded_object_store(ray):
    ray_cluster.connect(ray, "local")
    assert 100 << 20 <= ray.connected["object_store_memory"] <= 4 << 30 and not ray.connected["include_dashboard"]
