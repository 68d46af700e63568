"""One file for all descriptions: lines of JSON, CSV, Parquet. Each grows by whole lines and is its own journal.

A last line that is torn is dropped when the file is opened again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import OptionError
from ..install_hints import pip_install
from .lines import Lines
from .outputs import Described, check_target
from .pictures import Fault, Picture

COLUMNS = ("image", "captions", "score", "model", "asked")
_CODE = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files are bytes
_QUOTED, _PLAIN = rb'"[^"]*(?:""[^"]*)*"', rb'[^",\r\n]*'
_OPEN = rb'"(?P<open>[^"]*(?:""[^"]*)*)'
_TORN = re.compile(rb"(?:(?:%b|%b),)*(?:%b|%b|%b)\r?" % (_QUOTED, _PLAIN, _QUOTED, _OPEN, _PLAIN))  # a row's beginning


class Table:
    """A table of one file, of which the names stand for what is done. asked: the flags that shape its texts."""

    JOURNAL = ""  # what is put to its name, where lines lie in another file until the end

    def __init__(self, path: str, overwrite: bool, model: str, asked: str) -> None:
        self._final, self._path = path, path + self.JOURNAL
        self._passing = not os.path.exists(self._path)  # whether it goes, if it stays empty
        self._lines = Lines(self._path, overwrite)
        self._model, self._asked = model, asked
        self._done: set[int] = set()
        try:
            self._resume()
        except BaseException:
            self.close()
            raise

    def todo(self, picture: Picture) -> bool | Fault:
        key = hash(picture.name)
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def write(self, picture: Picture, described: Described) -> None:
        self._lines.append(self._line(described))

    def finish(self, failed: bool) -> None:
        if not failed:
            self._passing = False
            self._lines.sync()

    def close(self) -> None:
        if self._passing and self._lines.size == 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._lines.close()

    def _resume(self) -> None:
        """Read what is done, and drop a torn line."""
        end = 0
        with open(self._path, "rb") as file:
            for row, after in self._rows(file):
                end = after
                if row is not None:
                    self._check(row)
                    self._done.add(hash(row["image"]))
        self._lines.cut(end)

    def _check(self, row: dict[str, Any]) -> None:
        if row["model"] != self._model:
            wrong = f"{self._final} holds captions by {row['model']}, not by {self._model}"
        elif row["asked"] != self._asked:
            was, now = (f"texts of {asked}" if asked else "plain captions" for asked in (row["asked"], self._asked))
            wrong = f"{self._final} holds {was}, not {now}"
        else:
            return
        raise OptionError(f"{wrong}: give another file, or --overwrite")

    def _row(self, described: Described) -> dict[str, Any]:
        return described.row() | {"asked": self._asked}

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[dict[str, Any] | None, int]]:
        """The whole rows of a file, and where each ends; a heading is None. Raises OptionError for what is not ours."""
        raise NotImplementedError

    def _line(self, described: Described) -> bytes:
        raise NotImplementedError

    def _foreign(self, number: int) -> OptionError:
        return OptionError(f"{self._path}, line {number}, is not of ours: give another file, or --overwrite")


class JsonTable(Table):
    """A JSON object a line."""

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[dict[str, Any] | None, int]]:
        return json_rows(file, self._foreign)

    def _line(self, described: Described) -> bytes:
        return json_line(self._row(described))


def json_line(row: dict[str, Any]) -> bytes:
    """A row -> its line, in UTF-8. Bytes of a name that are no UTF-8 become escapes."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def json_rows(file: IO[bytes], foreign: Any) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a file of lines, and where each ends. A last line without an end is left out."""
    end = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            whole = all(name in row for name in COLUMNS) and isinstance(row["image"], str)
        except (ValueError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise foreign(number)
        end += len(line)
        yield row, end


class CsvTable(Table):
    """A heading, then a row a picture. Several captions are lines of one field."""

    HEADING = b"image,caption,score,model,asked\r\n"

    def finish(self, failed: bool) -> None:
        if not failed and self._lines.size == 0:
            self._lines.append(self.HEADING)
        super().finish(failed)

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[dict[str, Any] | None, int]]:
        end, lines, quotes, number = 0, list[bytes](), 0, 1
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            if quotes % 2 or not line.endswith(b"\r\n"):
                continue  # within quotes, or torn
            record, lines, quotes = b"".join(lines), [], 0
            end += len(record)
            rows = _csv_rows(record)
            if len(rows) != 1 or len(rows[0]) != len(COLUMNS) or (number == 1 and record != self.HEADING):
                raise self._foreign(number)
            yield None if number == 1 else dict(zip(COLUMNS, rows[0], strict=True)), end
            number += 1
        if not (self._is_torn(lines) if number > 1 else self.HEADING.startswith(b"".join(lines))):
            raise self._foreign(number)

    def _is_torn(self, lines: list[bytes]) -> bool:
        """Whether the last lines may be one row's beginning: no line ends outside quotes, no row begins in them."""
        torn = _TORN.fullmatch(b"".join(lines))
        if torn is None or any(line.endswith(b"\r\n") for line in lines):
            return False
        within = (torn["open"] or b"").split(b"\n")[1:]
        return all(row[3:] != [self._model, self._asked] for line in within for row in _csv_rows(line))

    def _line(self, described: Described) -> bytes:
        text = io.StringIO(newline="")
        row = self._row(described) | {"captions": "\n".join(described.captions)}
        csv.writer(text).writerow([row[name] for name in COLUMNS])
        return (b"" if self._lines.size else self.HEADING) + text.getvalue().encode(**_CODE)


def _csv_rows(data: bytes) -> list[list[str]]:
    """Bytes -> rows; none where they are no CSV."""
    try:
        return list(csv.reader(io.StringIO(data.decode(**_CODE), newline="")))
    except csv.Error:
        return []


class ParquetTable(JsonTable):
    """Parquet is written whole, at the end, from lines of JSON that lie beside it until then. Needs pyarrow."""

    ROWS = 10_000  # of a group
    JOURNAL = ".partial.jsonl"

    def __init__(self, path: str, overwrite: bool, model: str, asked: str) -> None:
        self._arrow, self._parquet = _arrow()
        check_target(path)
        if overwrite:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        super().__init__(path, overwrite, model, asked)

    def _resume(self) -> None:
        super()._resume()
        self._old: set[int] = set()  # names that the table holds already
        for row in self._kept():
            self._check(row)
            self._old.add(hash(row["image"]))
        self._done |= self._old

    def finish(self, failed: bool) -> None:
        """Write the rows that were there and the new ones into one table, and put it in its place."""
        if failed:
            return
        rows = list(self._new())
        if rows or not os.path.exists(self._final):
            temporary = Path(f"{self._final}.partial")
            try:
                with self._parquet.ParquetWriter(temporary, self._schema()) as writer:
                    for batch in _grouped(self._kept(), self.ROWS):
                        writer.write_table(self._arrow.Table.from_pylist(batch, self._schema()))
                    for batch in _grouped(self._new(), self.ROWS):
                        writer.write_table(self._arrow.Table.from_pylist(batch, self._schema()))
                with open(temporary, "r+b") as file:
                    os.fsync(file.fileno())  # before the lines that it is made from go
                os.replace(temporary, self._final)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        os.unlink(self._path)

    def _new(self) -> Iterator[dict[str, Any]]:
        with open(self._path, "rb") as file:
            for row, _ in json_rows(file, self._foreign):
                if hash(row["image"]) not in self._old:
                    yield row

    def _kept(self) -> Iterator[dict[str, Any]]:
        """The rows of the table that is there."""
        if not os.path.exists(self._final):
            return
        try:
            with self._parquet.ParquetFile(self._final) as table:
                if not table.schema_arrow.equals(self._schema()):
                    raise KeyError("its columns are others")
                for batch in table.iter_batches(self.ROWS, columns=list(COLUMNS)):
                    yield from batch.to_pylist()
        except (self._arrow.ArrowException, KeyError, OSError) as error:
            raise OptionError(f"{self._final} is no table of ours: give another file, or --overwrite") from error

    def _line(self, described: Described) -> bytes:
        row = self._row(described)
        row["image"] = os.fsencode(described.name).decode("utf-8", "backslashreplace")  # Parquet holds UTF-8 alone
        return json_line(row)

    def todo(self, picture: Picture) -> bool | Fault:
        name = os.fsencode(picture.name).decode("utf-8", "backslashreplace")
        return super().todo(Picture(name, picture.path))

    def _schema(self) -> Any:
        arrow = self._arrow
        types = (arrow.string(), arrow.list_(arrow.string()), arrow.float64(), arrow.string(), arrow.string())
        return arrow.schema(list(zip(COLUMNS, types, strict=True)))


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise OptionError(f"Parquet needs pyarrow: {pip_install('parquet')}") from None
    return pyarrow, pyarrow.parquet


def _grouped(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


TABLES = {".jsonl": JsonTable, ".csv": CsvTable, ".parquet": ParquetTable}


def table(path: str, overwrite: bool, model: str, asked: str) -> Table:
    """The table that a file's name asks for. Raises OptionError for another name."""
    kind = TABLES.get(os.path.splitext(path)[1].lower())
    if kind is None:
        choices = ", ".join(TABLES)
        raise OptionError(f"out is {path!r}: give a file that ends with {choices}, or with shards a folder")
    return kind(path, overwrite, model, asked)
