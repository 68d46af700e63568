"""A retrieval report has one table and one list per direction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from blip2rt.errors import OptionError
from blip2rt_train.evaluation.report import Row, changes, render
from blip2rt_train.evaluation.retrieval import _tables


def test_retrieval_report_has_one_table_per_direction(tmp_path: Path) -> None:
    columns = {
        f"{score}_{way}_r@{k}": float(k + 100 * (way == "t2i"))
        for score in ("itc", "itm", "match")
        for way in ("t2i", "i2t")
        for k in (1, 5, 10)
    }
    tables = _tables(columns)
    assert list(tables) == ["Texts of an image (i2t)", "Images of a text (t2i)"]
    assert tables["Images of a text (t2i)"]["r@5"] == {"itc": 105.0, "itm": 105.0, "match": 105.0}
    assert sum(len(column) for table in tables.values() for column in table.values()) == len(columns)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        Row(tmp_path / "a.png", "", [], -rank, f"rank {rank + 1}", f"{rank} of {section}", section=section)
        for section in tables
        for rank in (0, 7, 3)
    ]
    page = render("retrieval", {}, tables, rows, 2)
    assert page.count("<table class=sorts>") == 2 == page.count("1 better ones are not shown")
    assert "<thead><tr><th><th>r@1<th>r@5<th>r@10</thead><tbody><tr><td>itc<td>1.00<td>5.00<td>10.00" in page
    for title in tables:
        assert f"<h2>{title}: worst first</h2>" in page
        assert page.index(f"7 of {title}") < page.index(f"3 of {title}") and f"0 of {title}" not in page


def test_report_compares_with_an_earlier_evaluation(tmp_path: Path) -> None:
    before = {"task": "caption", "data": "kept-back", "images": 20, "seconds": 9.0, "cider": 60.0, "bleu4": 10.5}
    (file := tmp_path / "before.json").write_text(json.dumps(before))
    found = changes(file, {**before, "seconds": 4.0, "cider": 90.0, "rouge_l": 5.0})
    assert found == {"cider": (60.0, 90.0), "bleu4": (10.5, 10.5)}
    page = render("t", {}, {}, [], 1, found)
    assert page.count("class=bar") == 4 and "width:66.7%" in page and "width:100.0%" in page
    with pytest.raises(OptionError, match="its images is 20, and 19 here"):
        changes(file, {**before, "images": 19})
    file.write_text("{")
    with pytest.raises(OptionError, match="cannot be read"):
        changes(file, before)
