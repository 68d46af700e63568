"""Which pictures an index holds: SQLite, one row a picture. A row's number is its place among the vectors.

A picture is in the index when its transaction is committed. Paths are relative to the index's root, as bytes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import GalleryError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (row INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
  time INTEGER NOT NULL, hash BLOB NOT NULL, listed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS by_hash ON files (hash);
CREATE INDEX IF NOT EXISTS by_listed ON files (listed) WHERE listed = 0;
CREATE TABLE IF NOT EXISTS free (row INTEGER PRIMARY KEY);
"""
_FIXES = {"locked": "wait for the other run", "full": "free some space and run again",
          "readonly": "let yourself write there", "unable to open": "let yourself read and write there"}  # fmt: skip


class File(NamedTuple):
    """A picture as it was when it was embedded."""

    row: int
    path: str
    size: int
    time: int  # of its last change, in ns
    hash: bytes  # sha256 of its bytes


def damaged(path: Path, why: str) -> GalleryError:
    """The error of an index that cannot be read. path: of its file."""
    return GalleryError(f"{path} is damaged ({why}): remove {path.parent}, and make it again by `blip2rt index`")


class Catalog:
    """The table of an index's pictures. One process writes, any number reads. Raises GalleryError."""

    def __init__(self, path: Path, write: bool) -> None:
        self._path = path
        if not write and not path.exists():
            raise damaged(path, "it is missing")
        address = f"{path.resolve().as_uri()}?mode={'rwc' if write else 'ro'}"
        with self._told():
            self._db = sqlite3.connect(address, uri=True, timeout=60, isolation_level=None)
            if write:
                self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM files"))

    @property
    def rows(self) -> int:
        """Places that are or were taken."""
        return 1 + int(self._one("SELECT max(ifnull((SELECT max(row) FROM files), -1), "
                                 "ifnull((SELECT max(row) FROM free), -1))"))  # fmt: skip

    def at(self, rows: Sequence[int]) -> dict[int, File]:
        """The pictures in these places; a place may be empty."""
        found: dict[int, File] = {}
        for start in range(0, len(rows), 500):
            part = [int(row) for row in rows[start : start + 500]]
            marks = ",".join("?" * len(part))
            for found_row in self._select(f"row IN ({marks})", part):
                found[found_row.row] = found_row
        return found

    def named(self, path: str) -> File | None:
        return next(self._select("path = ?", [os.fsencode(path)]), None)

    def hashed(self, digest: bytes) -> list[File]:
        return list(self._select("hash = ? ORDER BY row", [digest]))

    def all(self) -> Iterator[File]:
        return self._select("1 ORDER BY row", [])

    def unlisted(self) -> list[int]:
        """Places that the shortlist does not know yet."""
        return [row for (row,) in self._read("SELECT row FROM files WHERE listed = 0 ORDER BY row")]

    def empty(self) -> list[int]:
        return [row for (row,) in self._read("SELECT row FROM free ORDER BY row")]

    def places(self, count: int) -> list[int]:
        """Where the next pictures go: empty places first."""
        free = [row for (row,) in self._read("SELECT row FROM free ORDER BY row LIMIT ?", [count])]
        end = self.rows
        return free + list(range(end, end + count - len(free)))

    def put(self, files: Iterable[File]) -> None:
        """Pictures into their places. One that was there under the same path leaves its old place."""
        with self._transaction():
            for file in files:
                self._leave(self.named(file.path))
                self._db.execute("DELETE FROM free WHERE row = ?", [file.row])
                values = (file.row, os.fsencode(file.path), file.size, file.time, file.hash)
                self._db.execute("INSERT INTO files (row, path, size, time, hash) VALUES (?, ?, ?, ?, ?)", values)

    def move(self, file: File, path: str, time: int) -> None:
        """A picture has another name or time; its bytes are the same."""
        with self._transaction():
            if path != file.path:
                self._leave(self.named(path))
            self._db.execute("UPDATE files SET path = ?, time = ? WHERE row = ?", [os.fsencode(path), time, file.row])

    def remove(self, rows: Sequence[int]) -> None:
        with self._transaction():
            for file in self.at(rows).values():
                self._leave(file)

    def list(self, rows: Sequence[int]) -> None:
        """Say that the shortlist knows these places."""
        with self._transaction():
            self._db.executemany("UPDATE files SET listed = 1 WHERE row = ?", [(row,) for row in rows])

    def _leave(self, file: File | None) -> None:
        if file is not None:
            self._db.execute("DELETE FROM files WHERE row = ?", [file.row])
            self._db.execute("INSERT INTO free VALUES (?)", [file.row])

    def _select(self, where: str, values: Sequence[object]) -> Iterator[File]:
        for row, path, *rest in self._read(f"SELECT row, path, size, time, hash FROM files WHERE {where}", values):
            yield File(row, os.fsdecode(path), *rest)

    def _one(self, query: str) -> Any:
        return next(self._read(query))[0]

    def _read(self, query: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        with self._told():
            yield from self._db.execute(query, values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite has done so itself where its disk is full
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say in a line what SQLite cannot do."""
        try:
            yield
        except sqlite3.Error as error:
            for word, fix in _FIXES.items():
                if word in str(error):
                    raise GalleryError(f"{self._path}: {error}: {fix}") from None
            raise damaged(self._path, str(error)) from None
