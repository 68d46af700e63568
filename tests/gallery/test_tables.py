"""Tables resume after truncation, reject damage without loss, and are synced."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from blip2rt.errors import OptionError
from blip2rt.gallery.outputs import Description
from blip2rt.gallery.outputs.tables import CsvTable, open_table
from blip2rt.gallery.sources import Picture
from tests.seeds import new_seed

WORDS = ("a red square", 'a 5" sign', "a, b", "two\nlines", "ein Bär", "1, 2, 3, 4, 5", '"', "x\ny, z\n", "''")
ASKED = ("", "--ask 'what, \"now\"'")


def filled(path: Path, asked: str, rng: random.Random, words: tuple[str, ...] = WORDS) -> bytes:
    """A table of six random rows."""
    made = open_table(str(path), True, "tiny", asked)
    for i in range(6):
        captions = [rng.choice(words) for _ in range(rng.randint(1, 3))]
        made.write(Picture("", ""), Description(f"{rng.choice(words)}{i}.png", captions, -1.5, "tiny"))
    made.close()
    return path.read_bytes()


@pytest.mark.parametrize("asked", ASKED)
def test_truncated_csv_keeps_complete_rows(tmp_path, asked):
    path = tmp_path / "t.csv"
    data = filled(path, asked, random.Random(new_seed()))
    empty = CsvTable(str(tmp_path / "o.csv"), True, "tiny", asked)
    with open(path, "rb") as file:
        ends = [0, *(end for _, end in empty._rows(file))]
    empty.close()
    assert len(ends) == 8 and ends[-1] == len(data)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        CsvTable(str(path), False, "tiny", asked).close()
        left = path.read_bytes() if path.exists() else b""
        assert left == data[: max(end for end in ends if end <= size)], size


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("words", [WORDS[:1], WORDS])
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_extra_quote_in_csv_is_rejected_without_loss(tmp_path, asked, words, line_end):
    """Anywhere before the last row."""
    path, rng = tmp_path / "t.csv", random.Random(new_seed())
    heading, *lines = filled(path, asked, rng, words).split(b"\r\n")
    whole = heading + b"\r\n" + line_end.join(lines)
    for _ in range(60):
        at = rng.randint(len(heading) + 2, whole.rindex(lines[-2]) - len(line_end))
        edited = whole[:at] + b'"' + whole[at:]
        path.write_bytes(edited)
        with pytest.raises(OptionError, match="was not written by blip2rt"):
            CsvTable(str(path), False, "tiny", asked)
        assert path.read_bytes() == edited


def test_csv_with_other_line_ends_is_rejected(tmp_path):
    path = tmp_path / "t.csv"
    heading, rows = filled(path, "", random.Random(new_seed())).split(b"\r\n", 1)
    edited = heading + b"\r\n" + rows.replace(b"\r\n", b"\n")
    path.write_bytes(edited)
    with pytest.raises(OptionError, match="line 2, was not written by blip2rt"):
        CsvTable(str(path), False, "tiny", "")
    assert path.read_bytes() == edited


def test_parquet_is_synced_before_its_journal_is_removed(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path, order = tmp_path / "t.parquet", []
    sync, unlink = os.fsync, os.unlink
    made = open_table(str(path), False, "tiny", "")
    made.write(Picture("", ""), Description("a.png", ["a"], -1.5, "tiny"))
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(os, "unlink", lambda name: (order.append(os.path.basename(name)), unlink(name)))
    made.finish(False)
    made.close()
    assert order == [path.stat().st_ino, "t.parquet.partial.jsonl"]
