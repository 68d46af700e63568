"""All descriptions in one file: JSON lines, CSV or Parquet.

A table grows by complete rows, and its rows record which pictures are done. A torn last row is dropped on resume.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ...errors import OptionError, names_file, utf8_name
from ...install_hints import pip_install
from ..append_only import AppendOnlyFile
from ..path_checks import check_writable
from ..sources import Failure, Picture
from . import Description

COLUMNS = ("image", "caption", "captions", "score", "model", "asked")
TAG_COLUMNS = ("image", "tags", "probabilities", "model", "asked")
_LISTS = ("captions", "tags", "probabilities")
_TEXTS = ("image", "caption", "captions", "tags")
Row = dict[str, Any]
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # the beginning of a cell
_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes


class Table:
    """A table in one file, whose picture names tell what is done. asked: the flags that shape the texts."""

    JOURNAL = ""  # suffix of the file that collects rows, if it is not the table itself

    def __init__(self, path: str, overwrite: bool, model: str, asked: str, columns: tuple[str, ...] = COLUMNS) -> None:
        self._final, self._path, self._columns = path, path + self.JOURNAL, columns
        self._remove_if_empty = not os.path.exists(self._path)
        self._file = AppendOnlyFile(self._path, truncate=overwrite, named=not self.JOURNAL)
        self._model, self._asked = model, asked
        self._done: set[int] = set()
        try:
            self._resume()
        except BaseException:
            self.close()
            raise

    def needs(self, picture: Picture) -> bool | Failure:
        key = hash(utf8_name(picture.name))
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def write(self, picture: Picture, description: Description) -> None:
        self._file.append(self._encode(description.row() | {"asked": self._asked}))

    def finish(self, failed: bool) -> None:
        if not failed:
            self._remove_if_empty = False
            self._file.sync()

    def close(self) -> None:
        if self._remove_if_empty and self._file.size == 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._file.close()

    def _resume(self) -> None:
        """Read the names that are done and drop a torn row."""
        end = 0
        with open(self._path, "rb") as file:
            for row, after in self._rows(file):
                end = after
                if row is not None:
                    self._check(row)
                    self._done.add(hash(utf8_name(row["image"])))
        self._file.truncate(end)

    def _check(self, row: Row) -> None:
        if row["model"] != self._model:
            problem = f"{self._final} has captions by {row['model']}, not by {self._model}"
        elif row["asked"] != self._asked:
            was, now = (f"texts of {asked}" if asked else "plain captions" for asked in (row["asked"], self._asked))
            problem = f"{self._final} has {was}, not {now}"
        else:
            return
        raise OptionError(f"{problem}: give another file, or --overwrite")

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[Row | None, int]]:
        """Yield the complete rows of a file and where each ends; a heading is None. Raises OptionError for others."""
        raise NotImplementedError

    def _encode(self, row: Row) -> bytes:
        raise NotImplementedError

    def _unknown_format(self, number: int) -> OptionError:
        return OptionError(
            f"{self._path}, line {number}, was not written by blip2rt: give another file, or --overwrite"
        )


class JsonTable(Table):
    """JSON lines: one object a picture."""

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[Row | None, int]]:
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                valid = all(name in row for name in self._columns) and isinstance(row["image"], str)
            except (ValueError, TypeError, RecursionError):
                valid = False
            if not valid:
                raise self._unknown_format(number)
            end += len(line)
            yield row, end

    def _encode(self, row: Row) -> bytes:
        return json_line(row)


def json_line(row: Row) -> bytes:
    """Encode a row as a line of UTF-8."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


class CsvTable(Table):
    """A heading, then one row a picture. Several captions are lines of one field."""

    @property
    def _heading(self) -> bytes:
        return (",".join(self._columns) + "\r\n").encode()

    def finish(self, failed: bool) -> None:
        if not failed and self._file.size == 0:
            self._file.append(self._heading)
        super().finish(failed)

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[Row | None, int]]:
        end, lines, quotes, number = 0, list[bytes](), 0, 1
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            if quotes % 2 or not line.endswith(b"\r\n"):
                continue  # inside quotes, or torn
            record, lines, quotes = b"".join(lines), [], 0
            end += len(record)
            rows = _parse_csv(record)
            if len(rows) != 1 or len(rows[0]) != len(self._columns) or (number == 1 and record != self._heading):
                raise self._unknown_format(number)
            yield None if number == 1 else dict(zip(self._columns, map(_without_quote, rows[0]), strict=True)), end
            number += 1
        if not (self._is_torn(lines) if number > 1 else self._heading.startswith(b"".join(lines))):
            raise self._unknown_format(number)

    def _is_torn(self, lines: list[bytes]) -> bool:
        """Whether the last lines can be the beginning of one row: none of them ends a row."""
        for line in lines:
            rows = _parse_csv(line) if line.endswith(b"\n") else []
            if line.endswith(b"\r\n") or any(row[-2:] == [_quoted(self._model), self._asked] for row in rows):
                return False
        return True

    def _encode(self, row: Row) -> bytes:
        text = io.StringIO(newline="")
        row = row | {name: "\n".join(map(str, row[name])) for name in _LISTS if name in row}
        untrusted = {name: _quoted(row[name]) for name in (*_TEXTS, "model") if name in row}
        csv.writer(text).writerow([(row | untrusted)[name] for name in self._columns])
        return (b"" if self._file.size else self._heading) + text.getvalue().encode(**_ENCODING)


def _quoted(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _without_quote(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _parse_csv(data: bytes) -> list[list[str]]:
    """Parse rows; an empty list for anything but CSV."""
    try:
        return list(csv.reader(io.StringIO(data.decode(**_ENCODING), newline="")))
    except csv.Error:
        return []


class ParquetTable(JsonTable):
    """Parquet, written at the end from JSON lines that are collected next to it. Needs pyarrow."""

    ROWS_PER_GROUP = 10_000
    JOURNAL = ".partial.jsonl"

    def __init__(self, path: str, overwrite: bool, model: str, asked: str, columns: tuple[str, ...] = COLUMNS) -> None:
        self._arrow = load_pyarrow()
        self._parquet = self._arrow.parquet
        check_writable(path)
        if overwrite:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        super().__init__(path, overwrite, model, asked, columns)

    def _resume(self) -> None:
        super()._resume()
        self._old: set[int] = set()  # names already in the table
        for row in self._old_rows():
            self._check(row)
            self._old.add(hash(row["image"]))
        self._done |= self._old

    def finish(self, failed: bool) -> None:
        """Write the old and the new rows into one table and put it in place."""
        if failed:
            return
        if next(self._new_rows(), None) is not None or not os.path.exists(self._final):
            temporary = Path(f"{self._final}.partial")
            if temporary.is_symlink():
                temporary.unlink()
            try:
                with names_file(self._final), self._parquet.ParquetWriter(temporary, self._schema()) as writer:
                    for rows in (self._old_rows(), self._new_rows()):
                        while group := list(islice(rows, self.ROWS_PER_GROUP)):
                            writer.write_table(self._arrow.Table.from_pylist(group, self._schema()))
                with open(temporary, "r+b") as file:
                    os.fsync(file.fileno())  # before the journal is removed
                os.replace(temporary, self._final)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        os.unlink(self._path)

    def _new_rows(self) -> Iterator[Row]:
        with open(self._path, "rb") as file:
            for row, _ in self._rows(file):
                if row is not None and hash(row["image"]) not in self._old:
                    yield row

    def _old_rows(self) -> Iterator[Row]:
        """The rows of the existing table."""
        if not os.path.exists(self._final):
            return
        try:
            with self._parquet.ParquetFile(self._final) as table:
                if not table.schema_arrow.equals(self._schema()):
                    raise KeyError("other columns")
                for batch in table.iter_batches(self.ROWS_PER_GROUP, columns=list(self._columns)):
                    yield from batch.to_pylist()
        except (self._arrow.ArrowException, KeyError, OSError) as error:
            problem = f"{self._final} was not written by blip2rt"
            raise OptionError(f"{problem}: give another file, or --overwrite") from error

    def _schema(self) -> Any:
        arrow = self._arrow
        types = {"captions": arrow.list_(arrow.string()), "tags": arrow.list_(arrow.string())}
        types |= {"probabilities": arrow.list_(arrow.float64()), "score": arrow.float64()}
        return arrow.schema([(name, types.get(name, arrow.string())) for name in self._columns])


def load_pyarrow() -> Any:
    """Import pyarrow with its Parquet module. Raises OptionError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise OptionError(f"Parquet needs pyarrow: {pip_install('parquet')}") from None
    return pyarrow


TABLES = {".jsonl": JsonTable, ".csv": CsvTable, ".parquet": ParquetTable}


def open_table(path: str, overwrite: bool, model: str, asked: str, columns: tuple[str, ...] = COLUMNS) -> Table:
    """Open the table for the extension of `path`. Raises OptionError for another extension."""
    kind = TABLES.get(os.path.splitext(path)[1].lower())
    if kind is None:
        choices = ", ".join(TABLES)
        raise OptionError(f"out is {path!r}: give a file that ends with {choices}, or a folder for shards")
    return kind(path, overwrite, model, asked, columns)
