"""The pictures of an index, in SQLite. A picture's row number is also its position in the file of vectors.

A picture is in the index once its transaction is committed. Paths are relative to the index's root, and bytes.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import GalleryError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (row INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
  time INTEGER NOT NULL, hash BLOB NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
  listed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS by_hash ON files (hash);
CREATE INDEX IF NOT EXISTS by_listed ON files (listed) WHERE listed = 0;
CREATE TABLE IF NOT EXISTS free (row INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS shortlist (stamp BLOB NOT NULL);
"""
_COLUMNS = "row, path, size, time, hash, offset, length"
_TABLES = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
_FIXES = {
    "locked": "wait for the other run",
    "full": "free some space and run again",
    "I/O": "check the disk and its free space, and run again",
    "readonly": "finish an interrupted run by `blip2rt index`, or get write permission there",
    "unable to open": "get read and write permission there",
}


class File(NamedTuple):
    """A picture as it was when it was embedded."""

    row: int
    path: str
    size: int
    time: int  # of the last modification, in ns
    hash: bytes  # SHA-256 of its bytes
    offset: int = 0
    length: int = -1  # of its bytes in a shard, whose size and time these are; -1: the picture is a file


def damaged(path: Path, reason: str) -> GalleryError:
    """The error for an index that cannot be read. path: of the damaged file."""
    return GalleryError(f"{path} is damaged ({reason}): remove {path.parent} and create it again with `blip2rt index`")


def _is_inside(path: object) -> bool:
    """Whether a value of the catalog is a path that stays in the index's root."""
    if not isinstance(path, bytes) or not path or b"\0" in path:
        return False
    return not os.path.isabs(path) and (b".." not in path or os.pardir not in Path(os.fsdecode(path)).parts)


def _names_another_journal(journal: Path) -> bool:
    """Whether a journal ends with the name of a super-journal: SQLite would delete the file of that name."""
    with contextlib.suppress(OSError), open(journal, "rb") as file:
        file.seek(-len(_SUPER_JOURNAL), os.SEEK_END)
        return file.read() == _SUPER_JOURNAL
    return False


class Catalog:
    """The table of an index's pictures. One process writes, any number read. Raises GalleryError."""

    def __init__(self, path: Path, write: bool) -> None:
        self._path = path
        if not write and not path.exists():
            raise damaged(path, "it is missing")
        if _names_another_journal(path.with_name(f"{path.name}-journal")):
            raise damaged(path, "its journal names another file")
        address = f"{path.resolve().as_uri()}?mode={'rwc' if write else 'ro'}"
        with self._sqlite_errors():
            self._db = sqlite3.connect(address, uri=True, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA trusted_schema = OFF")
            if write:
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
            self._check_tables()

    def _check_tables(self) -> None:
        """Raise GalleryError for a catalog without tables, or with others: a view or a trigger could do anything."""
        found = self._db.execute(_TABLES).fetchall()
        if not found:
            raise GalleryError(f"{self._path} is empty, since its first run was interrupted: run `blip2rt index` again")
        with contextlib.closing(sqlite3.connect(":memory:")) as own:
            own.executescript(_SCHEMA)
            if found != own.execute(_TABLES).fetchall():
                raise damaged(self._path, "its tables are not those of an index")

    def close(self) -> None:
        self._db.close()

    def __len__(self) -> int:
        return int(self._value("SELECT count(*) FROM files"))

    @property
    def row_count(self) -> int:
        """The number of rows, free ones included."""
        last = (f"ifnull((SELECT max(row) FROM {table}), -1)" for table in ("files", "free"))
        return 1 + int(self._value(f"SELECT max({', '.join(last)})"))

    def at(self, rows: Sequence[int]) -> dict[int, File]:
        """Return the pictures in some rows; free rows are left out."""
        found: dict[int, File] = {}
        for start in range(0, len(rows), 500):
            part = [int(row) for row in rows[start : start + 500]]
            found |= {file.row: file for file in self._select(f"row IN ({','.join('?' * len(part))})", part)}
        return found

    def by_path(self, path: str) -> File | None:
        return next(self._select("path = ?", [os.fsencode(path)]), None)

    def by_hash(self, digest: bytes) -> list[File]:
        return list(self._select("hash = ? ORDER BY row", [digest]))

    def all(self) -> Iterator[File]:
        return self._select("1 ORDER BY row", [])

    def not_in_shortlist(self) -> list[int]:
        return self._rows("SELECT row FROM files WHERE listed = 0 ORDER BY row")

    def free_rows(self) -> list[int]:
        return self._rows("SELECT row FROM free ORDER BY row")

    def next_rows(self, count: int) -> list[int]:
        """Return the rows for the next pictures, free ones first."""
        free = self._rows("SELECT row FROM free ORDER BY row LIMIT ?", [count])
        end = self.row_count
        return free + list(range(end, end + count - len(free)))

    def put(self, files: Iterable[File]) -> None:
        """Store pictures in their rows. An older picture with the same path frees its row."""
        with self._transaction():
            for file in files:
                self._delete(self.by_path(file.path))
                self._db.execute("DELETE FROM free WHERE row = ?", [file.row])
                values = (file.row, os.fsencode(file.path), *file[2:])
                self._db.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def move(self, file: File, moved: File) -> None:
        """Record where a picture with the same bytes is now."""
        with self._transaction():
            if moved.path != file.path:
                self._delete(self.by_path(moved.path))
            values = (os.fsencode(moved.path), *moved[2:], file.row)
            names = "path = ?, size = ?, time = ?, hash = ?, offset = ?, length = ?"
            self._db.execute(f"UPDATE files SET {names} WHERE row = ?", values)

    def remove(self, rows: Sequence[int]) -> None:
        with self._transaction():
            for file in self.at(rows).values():
                self._delete(file)

    def record_shortlist(self, rows: Sequence[int], stamp: bytes) -> None:
        """Record that the shortlist's file, with its new stamp, includes more rows."""
        with self._transaction():
            self._db.executemany("UPDATE files SET listed = 1 WHERE row = ?", [(row,) for row in rows])
            self._db.execute("DELETE FROM shortlist")
            self._db.execute("INSERT INTO shortlist VALUES (?)", [stamp])

    def shortlist_stamp(self) -> object:
        """Return the stamp of the shortlist's file; None if there was none."""
        return next((stamp for (stamp,) in self._read("SELECT stamp FROM shortlist")), None)

    def _delete(self, file: File | None) -> None:
        if file is not None:
            self._db.execute("DELETE FROM files WHERE row = ?", [file.row])
            self._db.execute("INSERT INTO free VALUES (?)", [file.row])

    def _select(self, where: str, values: Sequence[object]) -> Iterator[File]:
        for row, path, *rest in self._read(f"SELECT {_COLUMNS} FROM files WHERE {where}", values):
            if row < 0 or not _is_inside(path) or [type(value) for value in rest] != [int, int, bytes, int, int]:
                raise damaged(self._path, f"the entry of picture {row} is invalid")
            yield File(row, os.fsdecode(path), *rest)

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[int]:
        rows = [int(row) for (row,) in self._read(query, values)]
        if any(row < 0 for row in rows):
            raise damaged(self._path, "a row is negative")
        return rows

    def _value(self, query: str) -> Any:
        return next(self._read(query))[0]

    def _read(self, query: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        with self._sqlite_errors():
            yield from self._db.execute(query, values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._sqlite_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself on a full disk
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        """Turn errors of SQLite into one line with a fix."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            for word, fix in _FIXES.items():
                if word in str(error):
                    raise GalleryError(f"{self._path}: {error}: {fix}") from None
            raise damaged(self._path, str(error)) from None
