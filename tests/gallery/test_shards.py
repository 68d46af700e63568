"""Truncated shards, and copies with all members."""

from __future__ import annotations

import io
import json
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.gallery.helpers import assert_error
from tests.seeds import new_seed
from tests.tiny.image_folders import picture, shard, tree

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
    with tarfile.open("s.tar", "w") as tar:
        for i in range(4):
            for name, data in ((f"{i}.png", png(rng)), (f"{i}.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return Path("s.tar").read_bytes()


def pictures_in(size: int) -> int:
    """The number of complete pictures in the first `size` bytes of s.tar."""
    with tarfile.open("s.tar") as tar:
        return sum(info.offset_data + -(-info.size // 512) * 512 <= size for info in tar if info.name.endswith("png"))


def test_truncated_shard_is_a_failure(whole, run):
    rng = random.Random(new_seed())
    with tarfile.open("s.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 512
    for size in [1, 511, 600, end - 1, *(rng.randrange(512, end) // 512 * 512 + rng.randint(1, 511) for _ in range(6))]:
        Path("cut.tar").write_bytes(whole[:size])
        known = pictures_in(size)
        code, _, err = run("caption", "cut.tar", "--out", "o.jsonl", "--overwrite")
        assert code == (1 if known else 2) and err.count("cut.tar") == 1, (size, err)
        assert f"{known} captioned, 1 failed" in err and (TRUNCATED in err or size < 512), (size, err)
        rows = Path("o.jsonl").read_text().splitlines() if known else []
        assert [json.loads(row)["image"] for row in rows] == [f"cut.tar/{i}.png" for i in range(known)]


def test_copy_of_a_truncated_shard_stays_hidden(whole, run):
    rng = random.Random(new_seed())
    command = ["caption", "in/s.tar", "--out", "copies"]
    Path("in").mkdir()
    Path("in/s.tar").write_bytes(whole)
    assert run(*command)[0] == 0
    expected = tree(Path("copies"))
    for size in (rng.randrange(1, len(whole) - 10240) for _ in range(4)):
        Path("copies/s.tar").unlink()
        Path("in/s.tar").write_bytes(whole[: size // 512 * 512 + 7])
        for _ in range(2):
            code, _, err = run(*command)
            assert code != 0 and "1 failed" in err and not Path("copies/s.tar").exists(), (size, err)
        Path("in/s.tar").write_bytes(whole)
        assert run(*command)[0] == 0 and tree(Path("copies")) == expected, size


def unpacked(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple:
    data = tar.extractfile(member).read() if member.isreg() else b""
    return member.name, member.type, member.linkname, member.mode, data


def test_folders_and_links_are_copied_unchanged(whole, run):
    rng = np.random.default_rng(new_seed())
    with tarfile.open("odd.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "words"}) as tar:
        folder, link, hard = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
        members = {".": folder, "a": folder, "a/0.png": b"", "a/0.link.png": link, "a/0.txt": b"", "a/1.png": link}
        members |= {"a/2" + "x" * 200 + ".png": b"", "b": folder, "b/3.png": hard}
        for name, kind in members.items():
            info, data = tarfile.TarInfo(name), png(rng) if name.endswith("png") and not kind else b""
            info.type, info.size, info.linkname = kind or tarfile.REGTYPE, len(data), "a/0.png" if kind else ""
            tar.addfile(info, io.BytesIO(data))
    code, _, err = run("caption", "odd.tar", "--out", "copies")
    assert code == 0 and "2 captioned" in err
    with tarfile.open("odd.tar") as old, tarfile.open("copies/odd.tar") as new:
        assert old.pax_headers == new.pax_headers == {"comment": "words"}
        unchanged = [[unpacked(tar, m) for m in tar if not m.name.endswith(".txt")] for tar in (old, new)]
        assert unchanged[0] == unchanged[1] and len(unchanged[0]) == 8
        texts = sorted(name for name in new.getnames() if name.endswith("txt"))
        assert texts == ["a/0.txt", "a/2" + "x" * 200 + ".txt"]
    copy = Path("copies/odd.tar")
    data, sizes = copy.read_bytes(), random.Random(new_seed())
    for size in [0, 1, *(sizes.randrange(len(data)) for _ in range(8))]:
        copy.unlink()
        copy.with_name(".odd.tar.partial").write_bytes(data[:size])
        run("caption", "odd.tar", "--out", "copies")
        assert copy.read_bytes() == data, size


def test_shards_are_copied_with_captions(model, album, run, tmp_path):
    shard(tmp_path / "s.tar", new_seed(), 6)
    code, _, err = run("caption", "s*.tar", "--out", "copies")
    assert code == 1 and "4 captioned, 1 failed" in err
    with tarfile.open("s.tar") as old, tarfile.open("copies/s.tar") as new:
        want = [name for name in old.getnames() if name not in ("0002.txt", "0003.txt")]
        assert sorted(new.getnames()) == sorted(want)
        for name in new.getnames():
            data = new.extractfile(name).read()
            if name.endswith(".txt"):
                picture = old.extractfile(name.replace(".txt", ".png")).read()
                assert data.decode() == model.caption(picture) + "\n"
            else:
                assert data == old.extractfile(name).read()
    assert "already done" in run("caption", "s.tar", "--out", "copies")[2]
    assert "s.tar/0000.png\t" in run("caption", "s.tar")[1]
    assert_error(run("caption", "s.tar", "album", "--out", "copies"), "'album' is not a shard")
    assert_error(run("caption", "sh/none.tar", "--out", "copies"), "no such file: 'sh/none.tar'")
    assert run("caption", "s.tar", "--out", "copies.v1")[0] == 1
    assert tree(Path("copies.v1")) == tree(Path("copies"))
    Path("bad.tar").write_bytes(b"x" * 2000)
    code, _, err = run("caption", "*.tar", "--out", "copies")
    assert code == 1 and "bad.tar" in err and "1 failed" in err


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
    assert run("caption", "bad.tar", "--out", "copies")[0] == code
    assert time.process_time() - started < 20
