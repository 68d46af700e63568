"""Captions of a merged index in SQLite's full-text index, by row, and the fusion of two rankings."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..bundle.regular_files import require_regular
from ..errors import OptionError
from .catalog import damaged
from .outputs.tables import load_pyarrow

FILE_NAME = "captions.db"
_TABLE = "CREATE VIRTUAL TABLE captions USING fts5(text, content='', tokenize='porter unicode61')"
_TABLES = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
_MATCHES = 5000  # matches that are ranked; more of a frequent word are not looked at
_FUSION = 60  # of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)
_STOP_WORDS = frozenset("a an and are at by for from in is it of on or that the there this to with".split())


def write_captions(folder: Path, captions: Iterator[tuple[int, str]]) -> None:
    """Write captions by row."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as db:
        db.executescript(f"PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; BEGIN; {_TABLE};")
        db.executemany("INSERT INTO captions (rowid, text) VALUES (?, ?)", captions)
        db.execute("INSERT INTO captions (captions) VALUES ('optimize')")
        db.execute("COMMIT")


class CaptionSearch:
    """Finds rows by the words of their captions. Raises GalleryError."""

    def __init__(self, folder: Path, rows: int) -> None:
        """rows: number of the index's rows."""
        self._path, self._rows = folder / FILE_NAME, rows
        try:
            require_regular(self._path, follow=False)
            url = f"{self._path.resolve().as_uri()}?mode=ro&immutable=1"
            self._db = sqlite3.connect(url, uri=True, check_same_thread=False)
            self._db.execute("PRAGMA trusted_schema = OFF")
            found = self._db.execute(_TABLES).fetchall()
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            raise damaged(self._path, str(error)) from None
        with contextlib.closing(sqlite3.connect(":memory:")) as own:
            own.execute(_TABLE)
            if found != own.execute(_TABLES).fetchall():
                raise damaged(self._path, "its tables are not those of captions")

    def close(self) -> None:
        self._db.close()

    def nearest(self, text: str, count: int) -> list[int]:
        """Return the rows whose captions match a text best: those with all its words, or else with any of them."""
        words = [word for word in re.findall(r"\w+", text.lower()) if word not in _STOP_WORDS]
        quoted = [f'"{word}"' for word in dict.fromkeys(words)]
        found: list[int] = []
        for operator in (" ", " OR "):
            if quoted and not found:
                found = self._select(operator.join(quoted), count)
        return found

    def _select(self, query: str, count: int) -> list[int]:
        ranked = "SELECT rowid, bm25(captions) AS rank FROM captions WHERE captions MATCH ? LIMIT ?"
        try:
            found = self._db.execute(f"SELECT rowid FROM ({ranked}) ORDER BY rank LIMIT ?", (query, _MATCHES, count))
            rows = [int(row) for (row,) in found]
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise damaged(self._path, str(error)) from None
        if any(not 0 <= row < self._rows for row in rows):
            raise damaged(self._path, "it names a picture that is not there")
        return rows


def fuse(*rankings: Sequence[int]) -> list[int]:
    """Merge rankings of rows by the sum of their reciprocal ranks, best first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, 1):
            scores[row] = scores.get(row, 0) + 1 / (_FUSION + rank)
    return sorted(scores, key=lambda row: (-scores[row], row))


def read_table(path: Path) -> Iterator[tuple[str, str]]:
    """Yield picture and captions of a table that `blip2rt caption --out` wrote. Raises OptionError."""
    try:
        for row in _READERS[path.suffix.lower()](path):
            name, captions = row["image"], row["captions"]
            text = captions if isinstance(captions, str) else "\n".join(captions)
            if b"\0" in os.fsencode(name):
                raise ValueError("a name has a NUL byte")
            yield name, text.encode("utf-8", "replace").decode()
    except FileNotFoundError:
        raise OptionError(f"no such file: {str(path)!r}") from None
    except (KeyError, ValueError, TypeError, RecursionError, csv.Error) as error:
        fix = "give a .jsonl, .csv or .parquet table written by `blip2rt caption --out`"
        raise OptionError(f"--captions {str(path)!r} is not a table of captions ({error}): {fix}") from None


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        yield from map(json.loads, file)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield from csv.DictReader(file)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    pyarrow = load_pyarrow()
    with open(path, "rb") as file:
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(columns=["image", "captions"]):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:  # OSError for a damaged footer
            raise ValueError(str(error)) from None


_READERS = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
