"""`caption` and `index` on object storage: the results of local pictures, resuming, errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blip2rt import object_storage
from blip2rt.backends.ort import Backend
from blip2rt.errors import OptionError
from blip2rt.gallery.sources import Sources
from blip2rt.gallery.walk import walk
from blip2rt.matching.matcher import Matcher
from blip2rt.object_storage import Url
from tests.gallery.helpers import assert_error, rows
from tests.object_store import get, put
from tests.object_store import s3 as s3
from tests.seeds import new_seed
from tests.tiny.image_folders import shard

pytest.importorskip("pyarrow.fs")


@contextmanager
def interrupted(owner: Any, name: str, call: int) -> Iterator[None]:
    """A call of a function is Ctrl-C."""
    original, calls = getattr(owner, name), list[int]()

    def stopping(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stopping)
        yield


def texts(path: str, prefix: str = "") -> dict[str, list[str]]:
    return {row["image"].removeprefix(prefix): row["captions"] for row in rows(Path(path))}


@pytest.mark.long(8, "moto's server, and pyarrow's client")
def test_pictures_of_a_bucket_are_captioned_in_place(album: Path, run: Any, s3: Any) -> None:
    """Killed after a batch, the same command resumes."""
    shard(Path("0.tar"), new_seed(), 5)
    names = [path.as_posix() for path in map(Path, Path().glob("album/**/*")) if path.is_file()]
    put(s3, {name: Path(name) for name in [*names, "0.tar"]})
    for local, url in ((("-r", "album"), ("-r", "s3://bucket/album")), (("0.tar",), ("s3://bucket/*.tar",))):
        assert run("caption", *local, "--batch-size", 1, "--out", "local.jsonl", "--overwrite")[0] == 1
        out = ["--batch-size", 1, "--out", f"s3://bucket/out/{len(url)}.jsonl?region=us-east-1"]
        with interrupted(Backend, "generate", 3):
            assert run("caption", *url, *out)[0] == 130 and f"out/{len(url)}.jsonl" not in get(s3)
        code, _, err = run("caption", *url, *out)
        assert code == 1 and "already done" in err, "damaged pictures fail, as locally"
        wanted = texts("local.jsonl")
        wanted.pop("album/no ending", None)  # without an ending, it would have to be opened
        Path("found.jsonl").write_bytes(get(s3 / "out")[f"{len(url)}.jsonl"])
        assert texts("found.jsonl", "s3://bucket/") == wanted != {}
    assert_error(run("caption", "s3://bucket/0.tar", "--out", "folder"), "give a file that ends with")
    assert_error(run("caption", "-r", "s3://none/album", "--out", "x.csv"), "cannot read 's3://none/album'", "check")
    assert_error(run("caption", "-r", "s3://bucket/album", "--write", "txt"), "cannot have sidecar files", "give --out")


@pytest.mark.long(8, "moto's server, and pyarrow's client")
def test_a_bucket_is_indexed_in_place(run: Any, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a batch, the same command resumes."""
    monkeypatch.chdir(tmp_path)
    Path("shards").mkdir()
    shard(Path("shards/0.tar"), new_seed(), 5)
    put(s3, {"shards/0.tar": Path("shards/0.tar")})
    for number, (local, url) in enumerate((("shards/0.tar", "s3://bucket/shards/0.tar"), ("", "s3://bucket/shards"))):
        assert local == "" or run("index", local, "--out", "local", "--batch-size", 1)[0] == 1
        out = f"s3://bucket/{number}.index"
        for owner, name in ((Matcher, "image_embeds"), (object_storage, "_transfer")):  # and while it uploads
            with interrupted(owner, name, 2):
                assert run("index", url, "--out", out, "--batch-size", 1)[0] == 130
                assert (f"{number}.index/files.db" in get(s3)) == (name == "_transfer")
        code, _, err = run("index", url, "--out", out, "--batch-size", 1)
        assert code == 1 and " already " in err, "a damaged picture fails, as locally"
        again = get(Url.parse(out))
        assert run("index", url, "--out", out)[0] == 1 and get(Url.parse(out)) == again, "nothing is new"
        Path(f"remote{number}").mkdir()
        for name, content in again.items():
            Path(f"remote{number}", name).write_bytes(content)
        assert again["vectors.i8"] == Path("local/vectors.i8").read_bytes()
        expected = run("search", "local", "a dog", "--rerank", 2)[1].replace("shards/", "s3://bucket/shards/")
        assert run("search", f"remote{number}", "a dog", "--rerank", 2)[1] == expected
        assert expected.count("\n") == run("search", "local", "a dog")[1].count("\n") > 2, "none is left out"
    for command in (("index", "shards/0.tar"), ("merge", "local")):
        assert run(*command, "--out", "s3://bucket/x.index")[0] == (command[0] == "index")
        assert json.loads(get(s3 / "x.index")["index.json"])["root"] == str(tmp_path / "shards/0.tar")
        s3.system.delete_dir_contents("bucket/x.index", missing_dir_ok=True)
    assert_error(run("search", out, "a dog"), "give a local path", "aws s3 cp")
    assert_error(run("merge", "local", "remote0", "--out", "both"), "is an index of s3://bucket/shards")
    assert_error(run("index", "shards", "--out", "s3://none/x"), "there is no bucket 'none'")
    assert_error(run("index", "s3://bucket/*.tar", "--out", "x"), "is a pattern", "give a folder")


def test_tables_have_bytes_and_names(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    given = [{"image": {"bytes": b"P"}, "url": "https://u/1"}, {"png": b"Q", "key": "7"}]
    columns = {name: [row.get(name) for row in given] for name in ("image", "url", "png", "key")}
    parquet.write_table(parquet.core.pa.table(columns), tmp_path / "t.parquet")
    found: list[Any] = list(walk(Sources((f"file://{tmp_path}/t.parquet",))))
    assert [(picture.name, picture.source()) for picture in found] == [("https://u/1", b"P"), ("7", b"Q")]
    parquet.write_table(parquet.core.pa.table({"caption": ["x"]}), tmp_path / "t.parquet")
    [failure] = walk(Sources((f"file://{tmp_path}",)))
    assert "it has the columns caption" in failure.reason  # type: ignore[union-attr]
    with pytest.raises(OptionError, match="cannot read 'abcd://b' .*: check"):
        list(walk(Sources(("abcd://b",))))
