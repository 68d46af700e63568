"""Search in an index that a server is given."""

from __future__ import annotations

import base64
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import blip2rt
from blip2rt.errors import GalleryError
from blip2rt.gallery import Index
from tests.serve.running import PHOTO, Running, encoded


@pytest.fixture
def index(tiny: Any, tmp_path: Path, photo: Any) -> Path:
    """Five random pictures and the photograph."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(photo(40, 300)).save(folder / f"{i}.png")
    shutil.copy(PHOTO, folder)
    with Index.create(tmp_path / "photos.index", folder, blip2rt.load(tiny.path)) as made:
        made.add()
    return tmp_path / "photos.index"


def test_pictures_are_found_by_words_and_by_a_picture(index: Path, tiny: Any, start: Callable[..., Running]) -> None:
    server = start("--index", index)
    assert server.get("/ready").json["pictures"] == 6
    found = server.post("/v1/search", {"text": "a dog runs", "n": 3}).json["hits"]
    with Index.open(index, blip2rt.load(tiny.path)) as opened:
        wanted = opened.search("a dog runs", 3)
    assert [hit["name"] for hit in found] == [hit.name for hit in wanted]
    assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in wanted])
    data = base64.b64decode(found[0]["thumbnail"].removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(data)).size) <= 256
    alike = server.post("/v1/search", {"image": encoded(PHOTO.read_bytes()), "n": 1, "thumbnails": False}).json["hits"]
    assert [hit["name"] for hit in alike] == ["photo.jpg"] and "thumbnail" not in alike[0]
    judged = server.post("/v1/search", {"text": "a dog", "n": 2, "rerank": 4}).json["hits"]
    assert all(0 <= hit["probability"] <= 1 for hit in judged)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_a_name_that_is_no_utf_8_is_written_as_such(
    tiny: Any, tmp_path: Path, photo: Any, start: Callable[..., Running]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(photo(40, 30)).save(folder / os.fsdecode(b"caf\xe9.png"))
    with Index.create(tmp_path / "photos.index", folder, blip2rt.load(tiny.path)) as made:
        made.add()
    found = start("--index", tmp_path / "photos.index").post("/v1/search", {"text": "a dog"})
    assert found.status == 200 and [hit["name"] for hit in found.json["hits"]] == [r"caf\xe9.png"]
    assert found.json["hits"][0]["thumbnail"]


def test_what_is_wrong_is_said(index: Path, start: Callable[..., Running], nano: Running) -> None:
    assert nano.post("/v1/search", {"text": "a dog"}).error["code"] == "no_index"
    assert nano.get("/ready").json["pictures"] == 0
    server = start("--index", index)
    for body in ({}, {"text": "a", "image": "b"}, {"text": "?!"}, {"text": "a", "n": 0}, {"image": "x", "rerank": 3}):
        assert server.post("/v1/search", body).status == 400, body
    assert str(index) not in server.post("/v1/search", {"text": "a dog"}).body.decode(), "no path of this machine"


def test_an_index_of_another_model_is_refused(index: Path) -> None:
    with pytest.raises(GalleryError, match="was made by the model 'tiny'"):
        from blip2rt.serve.service import indexed

        indexed(index, blip2rt.load())
