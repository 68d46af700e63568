"""Walking folders, links and patterns; pictures in shards; truncated and malicious shards."""

import io
import json
import os
import random
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from blip2rt.gallery.sources import Sources
from blip2rt.gallery.walk import walk
from tests.gallery.helpers import POSIX, assert_error
from tests.seeds import new_seed
from tests.tiny.image_folders import GOOD, fill, picture, shard

TRUNCATED = "the shard is truncated or damaged"


def png(rng: np.random.Generator) -> bytes:
    data = io.BytesIO()
    picture(rng).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def whole(tmp_path, monkeypatch) -> bytes:
    """A shard s.tar of four pictures with JSON files, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(new_seed())
    data = b"".join(block(f"{i}.png", png(rng)) + block(f"{i}.json", b"{}") for i in range(4)) + bytes(1024)
    Path("s.tar").write_bytes(data)
    return data


def test_truncated_shard_is_a_failure(whole, run):
    rng = random.Random(new_seed())
    with tarfile.open("s.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 512
        ends = [info.offset_data + -(-info.size // 512) * 512 for info in tar if info.name.endswith("png")]
    for size in [1, 511, 600, end - 1, *(rng.randrange(512, end) // 512 * 512 + rng.randint(1, 511) for _ in range(6))]:
        Path("cut.tar").write_bytes(whole[:size])
        known = sum(each <= size for each in ends)
        code, _, err = run("caption", "cut.tar", "--out", "o.jsonl", "--overwrite")
        assert code == (1 if known else 2) and err.count("cut.tar") == 1, (size, err)
        assert f"{known} captioned, 1 failed" in err and (TRUNCATED in err or size < 512), (size, err)
        rows = Path("o.jsonl").read_text().splitlines() if known else []
        assert [json.loads(row)["image"] for row in rows] == [f"cut.tar/{i}.png" for i in range(known)]


def test_folders_and_links_are_no_pictures(model, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(new_seed())
    with tarfile.open("odd.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "words"}) as tar:
        folder, link, hard = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
        members = {".": folder, "a": folder, "a/0.png": b"", "a/0.link.png": link, "a/0.txt": b"", "a/1.png": link}
        members |= {"a/2" + "x" * 200 + ".png": b"", "b": folder, "b/3.png": hard}
        for name, kind in members.items():
            info, data = tarfile.TarInfo(name), png(rng) if name.endswith("png") and not kind else b""
            info.type, info.size, info.linkname = kind or tarfile.REGTYPE, len(data), "a/0.png" if kind else ""
            tar.addfile(info, io.BytesIO(data))
    code, out, err = run("caption", "odd.tar")
    assert (code, err) == (0, "")
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert names == ["odd.tar/a/0.png", "odd.tar/a/2" + "x" * 200 + ".png"]


def test_pictures_of_shards_are_captioned_into_a_table(model, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "s.tar", new_seed(), 6)
    Path("bad.tar").write_bytes(b"x" * 2000)
    command = ["caption", "*.tar", "--out", "o.jsonl"]
    code, _, err = run(*command)
    assert code == 1 and "bad.tar" in err and "4 captioned, 2 failed" in err
    with tarfile.open("s.tar") as tar:
        for row in map(json.loads, Path("o.jsonl").read_text().splitlines()):
            assert row["caption"] == model.caption(tar.extractfile(row["image"].removeprefix("s.tar/")).read())
    assert "4 already done" in run(*command)[2]
    assert_error(run("caption", "s.tar", "--out", "copies"), "out is 'copies': give a file that ends with .jsonl")


def record(key: str, value: object) -> bytes:
    """A PAX record, which begins with its own length."""
    text = f" {key}={value}\n".encode()
    return next(b"%d%s" % (size, text) for size in range(len(text), 9999) if len(b"%d%s" % (size, text)) == size)


def block(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, size: bytes = b"") -> bytes:
    """A member. size: replaces the field of its size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size or header[124:136]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def binary(size: int) -> bytes:
    """A size in base 256."""
    return (1 << 95 | size if size >= 0 else (1 << 96) + size).to_bytes(12, "big")


SPARSE = {"GNU.sparse.major": 1, "GNU.sparse.minor": 0, "GNU.sparse.name": "9.png", "GNU.sparse.realsize": 2**62}
MALICIOUS = {
    "size": block("9.png", b"", size=binary(2**62)),
    "negative size": block("9.png", b"", size=binary(-512)),
    "PAX size": block("x", record("size", 2**62), b"x") + block("9.png", b""),
    "PAX size beyond 64 bits": block("x", record("size", 2**70), b"x") + block("9.png", b""),
    "negative PAX size": block("x", record("size", -512), b"x") + block("9.png", b""),
    "PAX header": block("x", b"", b"x", binary(2**62)),
    "global header": block("x", b"", b"g", binary(2**62)),
    "long name": block("x", b"", b"L", binary(2**40)),
    "PAX digits": block("x", b"9" * 60_000, b"x") + block("9.png", b""),
    "chain of headers": block("x", record("a", "b"), b"x") * 3000,
    "sparse": block("x", b"".join(record(*item) for item in SPARSE.items()), b"x")
    + block("9.png", b"1\n0\n1\n".ljust(600)),
    "sparse map": block("x", b"".join(record(*item) for item in SPARSE.items()), b"x")
    + block("9.png", b"99999999\n" + b"1\n" * 4_000_000),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_headers_end_their_shard_only(whole, run, name):
    open_index = pytest.importorskip("blip2rt_train.data.shard_index").open_index
    end = whole.rstrip(b"\0")
    shard = end + bytes(-len(end) % 512) + MALICIOUS[name]
    Path("bad.tar").write_bytes(shard + bytes(1024))
    started = time.process_time()
    code, out, err = run("caption", "bad.tar", "s.tar")
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert names == [f"{shard}.tar/{i}.png" for shard in ("bad", "s") for i in range(4)]
    assert (code, err.count("\n")) == ((0, 0) if name == "sparse" else (1, 1)), err  # a sparse file is left out
    assert len(open_index(Path("bad.tar"), Path("cache")).rows) == 4
    assert time.process_time() - started < 20


@POSIX
def test_links_and_several_names_of_a_file(album, run):
    (album / "sub" / "loop").symlink_to("..")
    (album / "sub" / "self").symlink_to("self")
    (album / "sub" / "gone.png").symlink_to("nowhere.png")
    os.link(album / "a.png", album / "sub" / "hard.png")
    os.mkfifo(album / "sub" / "pipe.png")
    code, out, err = run("caption", "-r", "album", "album/sub", "album/*.png")
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert code == 1 and len(names) == len(set(names)) == len(GOOD) + 2
    assert "album/sub/hard.png" in names and "gone.png' is a link to a missing file" in err and "pipe" not in err


def test_walk_memory_does_not_grow_with_name_length(tmp_path):
    """A walk over 5,000 names keeps only a hash of each."""
    fill(tmp_path / "album", new_seed())
    for i in range(5_000):
        os.link(tmp_path / "album" / "a.png", tmp_path / "album" / f"{i:06d} {'name' * 20}.png")
    tracemalloc.start()
    count, walked = 0, walk(Sources((str(tmp_path / "album"),)))
    for _ in walked:
        count += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 5_000 + len(GOOD) + 2 and peak < 2 << 20
