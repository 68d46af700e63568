"""Models: loading, closing, pickling, warm-up, async calls; arrays of any layout and channel order."""

import asyncio
import io
import multiprocessing
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt.errors import BackendError, ImageError, OptionError
from blip2rt.image import prepare
from tests.tiny.bundle import Tiny


def test_folder_named_nano_takes_precedence(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert blip2rt.load("nano").bundle.manifest.name == "nano"
    (tmp_path / "nano").symlink_to(tiny.path)
    assert blip2rt.load("nano").bundle.path == Path("nano")


def test_closed_model_raises(tiny: Tiny, photo: Any) -> None:
    image = photo()
    with blip2rt.load(tiny.path) as model:
        assert model.caption(image)
        assert str(tiny.path) in repr(model)
    for call in (lambda: model.caption(image), lambda: model.match(image, "a dog"), model.warm_up):
        with pytest.raises(BackendError, match="closed: load it again"):
            call()
    model.close()


def test_pickled_model_keeps_its_options(tiny: Tiny, photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo()
    monkeypatch.chdir(tiny.path.parent)
    model = blip2rt.load(tiny.path.name, threads=1, color="bgr")
    packed, want = pickle.dumps(model), model.caption(image)
    monkeypatch.chdir("/")
    again = pickle.loads(packed)
    assert again.caption(image) == want
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(model.caption, (image,)) == want


def test_warm_up_loads_everything(tiny: Tiny, photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from blip2rt.backends import ort

    model = blip2rt.load(tiny.path)
    model.warm_up()
    monkeypatch.setattr(ort, "native", None)  # opens sessions
    assert model.caption(photo()) is not None
    assert model.match(photo(), "a dog")


def test_async_calls_do_not_block_the_loop(tiny: Tiny, photo: Any) -> None:
    model, image = blip2rt.load(tiny.path), photo()
    threads = set()

    async def all_of_them() -> tuple[Any, ...]:
        def note(*_: int) -> None:
            threads.add(threading.get_ident())

        first = await model.acaption(image, num_beams=1, on_token=note)
        pieces = [piece async for piece in model.astream(image)]
        answered, matched = model.aask(image, "what is red"), model.amatch(image, "a dog")
        rest = await asyncio.gather(answered, matched, model.aembed_image(image), model.aembed_text("a dog"))
        return first, "".join(pieces), *rest

    caption, stream, answer, match, by_image, by_text = asyncio.run(all_of_them())
    assert threading.get_ident() not in threads
    assert caption == model.caption(image, num_beams=1) and stream == "".join(model.stream(image))
    assert answer == model.ask(image, "what is red") and match == model.match(image, "a dog")
    np.testing.assert_array_equal(by_image, model.embed_image(image))
    np.testing.assert_array_equal(by_text, model.embed_text("a dog"))


class Tensor:
    """A tensor of another library."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array


def test_array_layouts_and_channel_orders_give_the_same_pixels(tiny: Tiny, photo: Any) -> None:
    rgb, spec = photo(), blip2rt.load(tiny.path).bundle.manifest.image
    want = prepare(rgb, spec)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "png")
    arrays = (rgb.transpose(2, 0, 1), Tensor(rgb), Tensor(rgb.transpose(2, 0, 1)), memoryview(rgb))
    for same in (*arrays, memoryview(file.getvalue()), io.BytesIO(file.getvalue())):
        np.testing.assert_array_equal(prepare(same, spec), want)
    np.testing.assert_array_equal(prepare(rgb[:, :, ::-1], spec, color="bgr"), want)
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(prepare(alpha[:, :, [2, 1, 0, 3]], spec, color="bgr"), want)
    bgr = blip2rt.load(tiny.path, color="bgr")
    for same in (rgb[:, :, ::-1], Image.fromarray(rgb)):  # only arrays are affected
        np.testing.assert_array_equal(bgr.prepare(same), want)
    with pytest.raises(OptionError, match="color is 'BGR': give 'rgb', or 'bgr'"):
        blip2rt.load(tiny.path, color="BGR")


def test_an_array_of_four_axes_is_a_batch(tiny: Tiny, photo: Any) -> None:
    model = blip2rt.load(tiny.path)
    images = [photo(), photo()]
    batch = np.stack(images)
    want = model.caption(images)
    assert model.caption(batch) == model.caption(batch.transpose(0, 3, 1, 2)) == want
    assert model.caption(Tensor(batch[0])) == want[0]


def test_files_of_any_kind_are_read_or_reported(tmp_path: Path) -> None:
    spec, file = blip2rt.load().bundle.manifest.image, io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(file, "png")
    data, spaced = file.getvalue(), bytearray(2 * len(file.getvalue()))
    spaced[::2] = data
    ends = os.pipe()
    os.write(ends[1], data)
    os.close(ends[1])
    with os.fdopen(ends[0], "rb", 0) as pipe:  # cannot seek
        for readable in (memoryview(spaced)[::2], pipe):
            np.testing.assert_array_equal(prepare(readable, spec), prepare(data, spec))
    (tmp_path / "a.txt").write_text("words")
    with (tmp_path / "a.txt").open() as text, pytest.raises(ImageError, match="gives str, not bytes: open it"):
        prepare(text, spec)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="cannot read the open file"):
        prepare(pipe, spec)
