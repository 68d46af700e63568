"""`caption --ray` and `index --ray` on a stand-in of Ray: same bytes, resuming, failures."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from blip2rt.errors import OptionError
from blip2rt.gallery.sources import Sources
from blip2rt.integrations import ray as classes
from blip2rt.integrations import ray_executor
from blip2rt.integrations.ray_executor import RayExecutor
from tests.gallery.helpers import assert_error


class FakeRay(ModuleType):
    """The functions of Ray that are used, in this process. A result is computed when it is fetched."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.computed: list[int] = []
        self.exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))
        self.connected: dict[str, Any] = {}

    def init(self, **settings: Any) -> None:
        if settings["address"] == "nowhere:1":
            raise ConnectionError("a traceback\nRay is not there")
        self.connected = settings

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Any:
        assert options["max_restarts"] == options["max_task_retries"] == -1

        def actor_class(cls: type) -> Any:
            def create(*args: Any) -> Any:
                actor = cls(*args)

                def call(*sent: Any) -> Any:
                    sent = pickle.loads(pickle.dumps(sent))  # as on its way to another process

                    def compute() -> Any:
                        self.computed.append(sent[-1])
                        return actor.run(*sent)

                    return compute

                return SimpleNamespace(run=SimpleNamespace(remote=call))

            return SimpleNamespace(remote=create)

        return actor_class

    def get(self, result: Any) -> Any:
        return result()

    def shutdown(self) -> None:
        self.connected = {}

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_actor_id=lambda: "1", get_assigned_resources=lambda: {"CPU": 1.0})


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
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


def test_pool_guides_in_actors(album, run, ray, tmp_path):
    """A task that is guided holds sessions, which no process can send."""
    Path("pool.txt").write_text("a dog runs\na cat sits\n")
    common = ["caption", "-r", "album", "--batch-size", 3, "--num-beams", 2, "--pool", "pool.txt"]
    run(*common, "--out", "local.jsonl")
    run(*common, "--out", "t.jsonl", "--ray", "auto")
    assert Path("t.jsonl").read_bytes() == Path("local.jsonl").read_bytes() != b""


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


def test_shards_and_sidecars_are_those_of_a_local_run(album, run, ray):
    shutil.copytree("album", "copy")
    run("caption", "-r", "album", "--write", "txt")
    run("caption", "-r", "copy", "--write", "txt", "--ray", "auto")
    for path in Path("album").rglob("*.txt"):
        assert (Path("copy") / path.relative_to("album")).read_bytes() == path.read_bytes()


def test_index_has_the_vectors_of_a_local_run(album, run, ray):
    run("index", "album", "--out", "x")
    run("index", "album", "--out", "y", "--ray", "auto")
    assert Path("x/vectors.i8").read_bytes() == Path("y/vectors.i8").read_bytes()
    assert "10 already done" in run("index", "album", "--out", "y", "--ray", "auto")[2]


def test_bad_addresses_and_urls_are_one_line(album, run, ray, monkeypatch):
    assert_error(
        run("caption", "-r", "album", "--ray", "nowhere:1"), "--ray 'nowhere:1' cannot be reached", "Ray is not"
    )
    assert_error(run("caption", "s3://bucket/a.tar"), "is a URL: give --ray")
    assert_error(run("caption", "s3://bucket/a.tar", "--ray", "auto", "--out", "f"), "is a URL, and --out is a folder")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_error(run("caption", "-r", "album", "--ray", "auto"), "--ray needs Ray: pip install")


def test_urls_are_read_without_a_processor(ray, tiny, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    given = [{"image": {"bytes": b"P"}, "url": "https://u/1"}, {"png": b"Q", "key": "7"}]
    columns = {name: [row.get(name) for row in given] for name in ("image", "url", "png", "key")}
    parquet.write_table(parquet.core.pa.table(columns), tmp_path / "t.parquet")

    def rows(*rows: dict[str, Any]) -> Any:
        return lambda url, **options: SimpleNamespace(iter_rows=lambda: iter(rows))

    ray.data = SimpleNamespace(
        read_webdataset=rows(
            {"path": "s3://b/0.tar", "__key__": "k/1", "json": b"{}", "jpg": b"J"},
            {"path": "s3://b/0.tar", "__key__": "k/2", "json": b"{}", "jpg": None},
        ),
        read_binary_files=rows({"path": "s3://b/x.png", "bytes": b"B"}),
    )
    with RayExecutor("auto", str(tiny.path), None, {}) as executor:
        urls = ("s3://b/0.tar", f"file://{tmp_path}/t.parquet", "s3://b/folder")
        found = [(picture.name, picture.source()) for picture in executor.walk(Sources(urls))]
        names = ["s3://b/0.tar/k/1.jpg", "https://u/1", "7", "s3://b/x.png"]
        assert found == list(zip(names, [b"J", b"P", b"Q", b"B"], strict=True))
        parquet.write_table(parquet.core.pa.table({"caption": ["x"]}), tmp_path / "t.parquet")
        with pytest.raises(OptionError, match="it has the columns caption"):
            list(executor.walk(Sources((f"file://{tmp_path}/t.parquet",))))


def test_local_cluster_has_a_bounded_object_store(ray):
    ray_executor.connect(ray, "local")
    assert 100 << 20 <= ray.connected["object_store_memory"] <= 4 << 30 and not ray.connected["include_dashboard"]


def test_classes_add_columns(ray, tiny, album, model):
    paths = np.array([str(album / name) for name in ("a.png", "bad.jpg", "b.jpg")], object)
    batch = {"path": paths, "text": np.array(["a dog"] * 3, object)}
    captioned = classes.Captioner(str(tiny.path), image="path")(batch)
    good = [album / "a.png", album / "b.jpg"]
    assert [captioned["caption"][i] for i in (0, 2)] == [str(text) for text in model.caption(good)]
    assert captioned["caption"][1] is None and "bad.jpg" in captioned["error"][1] and captioned["error"][0] is None
    assert np.isnan(captioned["score"][1]) and captioned["captions"][0] == [captioned["caption"][0]]
    matched = classes.Matcher(str(tiny.path), image="path")(batch)
    assert matched["cosine"][2] == pytest.approx(model.match(album / "b.jpg", "a dog").cosine, abs=1e-5)
    embedded = classes.Embedder(str(tiny.path), image="path")(batch)
    assert np.allclose(embedded["embedding"][[0, 2]], model.embed_image(good), atol=1e-5)
    assert not embedded["embedding"][1].any()
    with pytest.raises(OptionError, match="no column 'bytes'"):
        classes.Embedder(str(tiny.path))(batch)


def test_capfilt_runs_its_command_once_per_processor(monkeypatch, tmp_path):
    from blip2rt_train.capfilt import cluster

    ran: list[list[str]] = []
    fake = FakeRay()
    fake.remote = lambda **options: lambda work: SimpleNamespace(remote=work)  # type: ignore[method-assign]
    fake.get = lambda codes: codes  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "ray", fake)
    cluster.run_tasks("auto", lambda arguments: int(bool(ran.append(arguments))), ["capfilt", "--ray", ""])
    assert ran == [["capfilt", "--ray", ""]] * 2 and not fake.connected
    with pytest.raises(OptionError, match="2 of 2 tasks failed"):
        cluster.run_tasks("auto", lambda arguments: 2, [])
