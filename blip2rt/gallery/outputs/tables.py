"""All descriptions in one file: JSON lines, or CSV or Parquet made from them.

JSON lines grow by complete rows, and rows record which pictures are done. A torn last row is dropped on resume. Other
formats are converted from them when the run ends, and not continued afterwards.
"""

import contextlib
import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import OptionError, names_file, utf8_name
from ...install_hints import pip_install
from ..output_files import AppendOnlyFile, check_writable
from ..sources import Failure, Picture
from . import Description, Sink

COLUMNS = ("image", "caption", "captions", "score", "model", "asked")
TAG_COLUMNS = ("image", "tags", "probabilities", "model", "asked")
_LISTS = ("captions", "tags", "probabilities")
_TEXTS = ("image", "caption", "captions", "tags", "model")
Row = dict[str, Any]
_ROWS_PER_GROUP = 10_000  # of Parquet
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # the beginning of a cell


class Table(Sink):
    """JSON lines, whose picture names tell what is done; another format is made of them when the run ends."""

    def __init__(self, path: str, overwrite: bool, model: str, asked: str, columns: tuple[str, ...] = COLUMNS) -> None:
        """path: ends with one of TABLES. asked: the flags that shape the texts. Raises OptionError."""
        self._convert = TABLES[os.path.splitext(path)[1].lower()]
        if self._convert is _write_parquet:
            load_pyarrow()
        if self._convert is not None:
            check_writable(path)
            if overwrite:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            if os.path.exists(path):
                raise OptionError(f"{path} exists: give another file, or --overwrite; only .jsonl can be continued")
        journal = "" if self._convert is None else ".partial.jsonl"
        self._final, self._path, self._columns = path, path + journal, columns
        self._remove_if_empty = not os.path.exists(self._path)
        self._file = AppendOnlyFile(self._path, truncate=overwrite, named=not journal)
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
        self._file.append(json_line(description.row() | {"asked": self._asked}))

    def finish(self, failed: bool) -> None:
        """Sync the rows, and convert them to the final format."""
        if failed:
            return
        self._remove_if_empty = False
        self._file.sync()
        if self._convert is None:
            return
        temporary = Path(f"{self._final}.partial")
        temporary.unlink(missing_ok=True)  # it may be a link
        try:
            with names_file(self._final):
                self._convert((row for row, _ in self._rows()), temporary, self._columns)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())  # before the journal is removed
            os.replace(temporary, self._final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        os.unlink(self._path)

    def close(self) -> None:
        if self._remove_if_empty and self._file.size == 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._file.close()

    def _resume(self) -> None:
        """Read the names that are done and drop a torn row."""
        end = 0
        for row, after in self._rows():
            end = after
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

    def _rows(self) -> Iterator[tuple[Row, int]]:
        """Yield the complete rows and where each ends. Raises OptionError for others."""
        end = 0
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                    valid = all(name in row for name in self._columns) and isinstance(row["image"], str)
                except (ValueError, TypeError, RecursionError):
                    valid = False
                if not valid:
                    place = f"{self._path}, line {number},"
                    raise OptionError(f"{place} was not written by blip2rt: give another file, or --overwrite")
                end += len(line)
                yield row, end


def json_line(row: Row) -> bytes:
    """Encode a row as a line of UTF-8."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write_csv(rows: Iterator[Row], target: Path, columns: Sequence[str]) -> None:
    """A heading, then one row a picture. Several captions are lines of one field."""
    with open(target, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for row in rows:
            row |= {name: "\n".join(map(str, row[name])) for name in _LISTS if name in row}
            row |= {name: _quoted(row[name]) for name in _TEXTS if name in row}
            table.writerow([row[name] for name in columns])


def _quoted(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _write_parquet(rows: Iterator[Row], target: Path, columns: Sequence[str]) -> None:
    arrow = load_pyarrow()
    types = {"captions": arrow.list_(arrow.string()), "tags": arrow.list_(arrow.string())}
    types |= {"probabilities": arrow.list_(arrow.float64()), "score": arrow.float64()}
    schema = arrow.schema([(name, types.get(name, arrow.string())) for name in columns])
    with arrow.parquet.ParquetWriter(target, schema) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(arrow.Table.from_pylist(group, schema))


def load_pyarrow() -> Any:
    """Import pyarrow with its Parquet module. Raises OptionError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise OptionError(f"Parquet needs pyarrow: {pip_install('parquet')}") from None
    return pyarrow


# What writes a file of rows, by its extension; None: the rows are the file.
Convert = Callable[[Iterator[Row], Path, Sequence[str]], None]
TABLES: dict[str, Convert | None] = {".jsonl": None, ".csv": _write_csv, ".parquet": _write_parquet}
