"""What type checkers say of the public calls. mypy reads this file in `make lint`; nothing runs it.

`assert_type` states the type of a result. An ignored error states that a wrong use is found: mypy reports an `ignore`
that is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip2rt import Chat, ImageError, Match, Model, Scored
from blip2rt.gallery import Counts, Hit, Index, one_vector
from blip2rt.object_storage import Url
from blip2rt.options import CaptionOptions, TextOptions
from blip2rt.results import Tag

if TYPE_CHECKING:
    from typing_extensions import assert_type

    Floats = NDArray[np.float32]


def images_of_every_kind(model: Model, pixels: NDArray[np.uint8], picture: Image.Image, data: bytes) -> None:
    for image in ("a.jpg", Path("a.jpg"), data, bytearray(data), memoryview(data), picture, pixels):
        assert_type(model.caption(image), Scored)
    assert_type(model.caption(pixels), Scored)
    assert_type(model.caption((picture, data)), list[Scored])
    assert_type(model.caption([pixels, "a.jpg", picture, data, Path("b.jpg")]), list[Scored])
    assert_type(model.caption(open("a.jpg", "rb")), Scored)  # noqa: SIM115
    model.caption(3)  # type: ignore[call-overload]
    model.caption([1, 2])  # type: ignore[list-item]


def captions(model: Model, one_or_many: Path | list[Path]) -> None:
    text: str = model.caption("a.jpg", prompt="a photo of", num_beams=5, temperature=0.5, do_sample=True)
    assert_type(text.upper(), str)
    assert_type(model.caption("a.jpg").score, float)
    assert_type(model.caption("a.jpg", num_captions=3), list[Scored])
    assert_type(model.caption("a.jpg", num_captions=1), Scored)
    assert_type(model.caption(["a.jpg"], scores=True), list[Scored])
    assert_type(model.caption(["a.jpg"], num_captions=3), list[list[Scored]])
    assert_type(model.caption("a.jpg", on_token=lambda image, draw, token_id: token_id != 2), Scored)
    assert_type(model.caption("a.jpg", stop_strings=["."], bad_words="dog", early_stopping="never"), Scored)
    assert_type(model.caption(one_or_many), Scored | list[Scored])
    assert_type(model.caption("a.jpg", max_time=1, on_timeout=None), Any)
    model.caption("a.jpg", beams=5)  # type: ignore[call-overload]
    model.caption("a.jpg", num_beams="five")  # type: ignore[call-overload]
    model.caption("a.jpg", "a photo of")  # type: ignore[call-overload]


def answers(model: Model) -> None:
    assert_type(model.ask("a.jpg", "who?"), Scored)
    assert_type(model.ask(["a.jpg"], "who?"), list[Scored])
    assert_type(model.ask("a.jpg", ["who?", "where?"]), list[Scored])
    assert_type(model.ask("a.jpg", "who?", num_captions=2, do_sample=True), list[Scored])
    assert_type(model.ask(["a.jpg"], ["who?"], num_captions=2), list[list[Scored]])
    assert_type(model.ask(["a.jpg"], ["who?"], keep_going=True), list[Scored | ImageError])
    assert_type(model.ask("a.jpg", "who?", max_time=1, on_timeout=None), Any)
    model.ask("a.jpg")  # type: ignore[call-overload]
    model.ask("a.jpg", b"who?")  # type: ignore[arg-type]
    model.ask("a.jpg", "who?", prompt="a photo of")  # type: ignore[call-overload]


def streams_and_chats(model: Model) -> None:
    assert_type(model.stream("a.jpg"), Iterator[str])
    assert_type(model.stream("a.jpg", "a photo of", max_new_tokens=5), Iterator[str])
    assert_type(model.stream("a.jpg", question="who?"), Iterator[str])
    chat = model.chat("a.jpg", num_beams=3)
    assert_type(chat, Chat)
    assert_type(chat.ask("who?", seed=1, do_sample=True), str)
    assert_type(chat.stream("who?"), Iterator[str])
    model.stream(["a.jpg"])  # type: ignore[arg-type]
    model.stream("a.jpg", num_captions=2)  # type: ignore[call-arg]
    model.stream("a.jpg", beams=1)  # type: ignore[call-arg]
    chat.ask(3)  # type: ignore[arg-type]
    chat.ask("who?", num_captions=2)  # type: ignore[call-arg]


def matches(model: Model) -> None:
    assert_type(model.match("a.jpg", "a dog"), Match)
    assert_type(model.match(["a.jpg"], "a dog"), list[Match])
    assert_type(model.match("a.jpg", ["a dog", "a cat"]), list[Match])
    assert_type(model.match(["a.jpg"], ["a dog"]), list[Match])
    assert_type(model.match("a.jpg", "a dog").probability, float)
    model.match("a.jpg", 3)  # type: ignore[call-overload]


def labels(model: Model) -> None:
    assert_type(model.tag("a.jpg"), list[Tag])
    assert_type(model.tag(["a.jpg"], ["dog"], top=3), list[list[Tag]])
    assert_type(model.tag("a.jpg", keep_going=True), list[Tag] | ImageError)
    assert_type(model.tag(["a.jpg"], keep_going=True), list[list[Tag] | ImageError])
    model.tag("a.jpg", 3)  # type: ignore[call-overload]


def embeddings(model: Model) -> None:
    assert_type(model.embed_image(["a.jpg"]), Floats)
    assert_type(model.embed_text("a dog"), Floats)
    features = model.vision_features(["a.jpg"])
    assert_type(model.match_features(features, ["a dog"]), list[Match])
    model.embed_text(b"a dog")  # type: ignore[arg-type]
    model.embed_image(3)  # type: ignore[call-overload]


def the_gallery(model: Model, picture: Image.Image) -> None:
    with Index.create("photos.index", Path("photos"), model) as index:
        assert_type(index, Index)
        assert_type(index.add(), Counts)
        assert_type(index.add().processed, int)
        assert_type(len(index), int)
        assert_type(index.search("a dog", 5, rerank=32), list[Hit])
        assert_type(index.search(picture, image=True, exact=True), list[Hit])
    assert_type(Index.open(Path("photos.index"), write=True), Index)
    hit = index.search("a dog")[0]
    assert_type(hit.path, Path | Url)
    assert_type(hit.score, float)
    assert_type(hit.probability, float | None)
    assert_type(one_vector(model.embed_image("a.jpg")), Floats)
    index.search(3)  # type: ignore[arg-type]
    index.search("a dog", reranked=3)  # type: ignore[call-arg]
    Index.create("photos.index")  # type: ignore[call-arg]


def options_handed_on(model: Model) -> None:
    text: TextOptions = {"num_beams": 3, "seed": None}
    assert_type(model.caption("a.jpg", **text), Scored)
    assert_type(model.ask(["a.jpg"], "who?", **text), list[Scored])
    caption: CaptionOptions = {"prompt": "a photo of", **text}
    assert_type(model.caption("a.jpg", num_captions=3, **caption), list[Scored])
    wrong: TextOptions = {"beams": 3}  # type: ignore[typeddict-unknown-key]
    assert_type(wrong, TextOptions)
