"""Search in the index of a server."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import blip2rt
from blip2rt.errors import GalleryError
from blip2rt.gallery import Index
from blip2rt.serve.service import count_indexed
from tests.serve.server_process import PHOTO, ServerProcess, encoded, index_of, png


@pytest.fixture
def index(tiny: Any, tmp_path: Path, photo: Any) -> Path:
    """Five random pictures and the photograph."""
    pictures = {f"{i}.png": png(photo(40, 300)) for i in range(5)}
    return index_of(tiny, tmp_path, {**pictures, "photo.jpg": PHOTO.read_bytes()})


def test_pictures_are_found_by_text_and_by_picture(index: Path, tiny: Any, start: Callable[..., ServerProcess]) -> None:
    server = start("--index", index)

    def search(**body: Any) -> Any:
        return server.post("/v1/search", body).json["hits"]

    assert server.get("/ready").json["pictures"] == 6
    found = search(text="a dog runs", n=3)
    with Index.open(index, blip2rt.load(tiny.path)) as opened:
        expected = opened.search("a dog runs", 3)
    assert [hit["name"] for hit in found] == [hit.name for hit in expected]
    assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected])
    data = base64.b64decode(found[0]["thumbnail"].removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(data)).size) <= 256
    [similar] = search(image=encoded(PHOTO.read_bytes()), n=1, thumbnails=False)
    assert similar["name"] == "photo.jpg" and "thumbnail" not in similar
    assert all(0 <= hit["probability"] <= 1 for hit in search(text="a dog", n=2, rerank=4))


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_names_that_are_not_utf_8_are_escaped(
    tiny: Any, tmp_path: Path, photo: Any, start: Callable[..., ServerProcess]
) -> None:
    index = index_of(tiny, tmp_path, {os.fsdecode(b"caf\xe9.png"): png(photo(40, 30))})
    found = start("--index", index).post("/v1/search", {"text": "a dog"})
    assert found.status == 200 and [hit["name"] for hit in found.json["hits"]] == [r"caf\xe9.png"]
    assert found.json["hits"][0]["thumbnail"]


@pytest.mark.long(5, "a real server process")
def test_invalid_searches_are_rejected(index: Path, start: Callable[..., ServerProcess], nano: ServerProcess) -> None:
    assert nano.post("/v1/search", {"text": "a dog"}).error["code"] == "no_index"
    assert nano.get("/ready").json["pictures"] == 0
    server = start("--index", index)
    for body in ({}, {"text": "a", "image": "b"}, {"text": "?!"}, {"text": "a", "n": 0}, {"image": "x", "rerank": 3}):
        assert server.post("/v1/search", body).status == 400, body
    assert str(index) not in server.post("/v1/search", {"text": "a dog"}).body.decode(), "no path of this machine"


def test_index_of_another_model_is_rejected(index: Path) -> None:
    with pytest.raises(GalleryError, match="'tiny'"):
        count_indexed(index, blip2rt.load())
