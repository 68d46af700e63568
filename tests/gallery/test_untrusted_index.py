"""Indexes from others: damaged or malicious files give one line, and nothing outside of them is read or written."""

import json
import os
import shutil
import sqlite3
import struct
from pathlib import Path

import pytest

from blip2rt.gallery import Index, index
from tests.gallery.helpers import POSIX, assert_error

pytestmark = pytest.mark.long(5, "hostile indexes, read by limited processes")

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"


@pytest.fixture
def indexed(album, run) -> Path:
    run("index", "album", "--out", "x")
    return Path("x")


def execute(at: Path, *statements: str) -> None:
    with sqlite3.connect(at / "files.db") as db:
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize("at", ["x", "copy"])
def test_shortlists_of_others_are_built_again(model, album, run, monkeypatch, at):
    """usearch trusts its file: one that was copied, or changed under its own size and time, is never opened."""
    pytest.importorskip("usearch")
    monkeypatch.setattr(index, "MAX_EXACT", 4)
    run("index", "album", "--out", "x")
    file, expected = Path("x/shortlist.usearch"), run("search", "x", "a dog", "-n", 5)[1]
    with Index.open("x", model) as reader:
        assert reader._shortlist is not None
    shutil.copytree("x", "copy")
    time = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, ns=(time, time))
    with Index.open(at, model) as reader:
        assert reader._shortlist is None
    code, found, said = run("search", at, "a dog", "-n", 5)
    assert (code, found) == (0, expected) and said.startswith("blip2rt: no shortlist of this machine, so every picture")
    assert run("index", "album", "--out", at)[0] == 1  # the album has bad pictures
    with Index.open(at, model) as reader:
        assert reader._shortlist is not None
    assert run("search", at, "a dog", "-n", 5)[1] == expected


@POSIX
@pytest.mark.parametrize(
    "name", ["files.db", "files.db-journal", "vectors.i8", "shortlist.usearch", "index.json", "lock"]
)
@pytest.mark.parametrize("kind", ["link", "pipe", "zero"])
def test_files_of_an_index_are_regular(indexed, run, name, kind):
    """A link is not followed, neither for reading nor for writing, and a pipe does not block."""
    outside = Path("outside")
    outside.write_bytes(b"mine")
    (indexed / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(indexed / name)
    else:
        (indexed / name).symlink_to(outside.resolve() if kind == "link" else "/dev/zero")
    commands = [["index", "album", "--out", "x"]] + [["search", "x", "a dog"]] * (name != "lock")
    for command in commands:
        assert_error(run(*command), f"x/{name}", "it is a " + ("pipe" if kind == "pipe" else "link"))
    assert outside.read_bytes() == b"mine"


OUTSIDE = ("CAST('../../etc/passwd' AS BLOB)", "CAST('/etc/passwd' AS BLOB)")
VALUES = {"path": ("5", "x'610062'", "'text'", *OUTSIDE, "x''"), "row": ("-5", "4611686018427387904")}


@pytest.mark.parametrize(
    "statement",
    [
        *(f"UPDATE files SET {name} = {each} WHERE row = 3" for name in VALUES for each in VALUES[name]),
        *(f"UPDATE files SET {change}" for change in ("hash = 5", "size = 'many'", "time = 1.5")),
        *(f"INSERT INTO free VALUES ({row})" for row in (-1, 1 << 62)),
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER DELETE ON files BEGIN DELETE FROM free; END",
        "DROP TABLE free",
        f"DROP TABLE free;; CREATE VIEW free (row) AS {ENDLESS}",
    ],
)
def test_odd_catalogs_are_one_line(indexed, run, statement):
    execute(indexed, *statement.split(";; "))
    for command in (["search", "x", "a dog"], ["index", "album", "--out", "x"]):
        code, _, err = run(*command)
        assert "is damaged" in err.splitlines()[-1] if code == 2 else "path" not in statement, err


@POSIX
def test_journal_deletes_no_other_file(indexed, run):
    """SQLite deletes the super-journal that an interrupted journal names: here any file."""
    victim, magic = Path("victim").resolve(), bytes.fromhex("d9d505f920a163d7")
    victim.write_text("precious")
    pages, name = (indexed / "files.db").stat().st_size // 4096, os.fsencode(victim)
    header = (magic + struct.pack(">5I", 0, 0, pages, 512, 4096)).ljust(512, b"\0")
    end = struct.pack(">I", (1 << 18) + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    (indexed / "files.db-journal").write_bytes(header + end)
    for command in (["search", "x", "a dog"], ["index", "album", "--out", "x"]):
        assert_error(run(*command), "x/files.db is damaged (its journal names another file)")
    assert victim.read_text() == "precious"


ODD = {"queries": (65535, True, 1.0), "size": (2**70,), "root": ("a\0b", "\ud800", 5), "version": (3.5,)}


@pytest.mark.parametrize(("name", "value"), [("model", ["x"]), *((name, each) for name in ODD for each in ODD[name])])
def test_odd_index_json_is_one_line(indexed, run, name, value):
    file = indexed / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    for command in (["search", "x", "a dog"], ["index", "album", "--out", "x"]):
        assert_error(run(*command), "x")
