"""Helpers of the gallery's tests: expected errors, rows of a table."""

import csv
import json
import os
from pathlib import Path

import pytest

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and links")
TIMEOUT = 900  # seconds


def assert_error(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2 and out == "" and err.startswith("blip2rt: error: ") and err.count("\n") == 1, result
    assert all(word in err for word in words), err


def make_unreadable(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Deny reading of folders whose path has this ending, also to root."""
    listdir = os.listdir

    def read(path: str) -> list[str]:
        if str(path).endswith(ending):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", read)


def rows(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            found = list(csv.DictReader(file))
        return [{**row, "captions": row["captions"].split("\n")} for row in found]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()
