"""The C API with wrong arguments, freed handles, many threads and many calls."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt.backends.ort import find_library
from blip2rt.errors import BundleError
from tests.c.build import ROOT, build, run
from tests.c.library import CError, CModel, Handle, call, library, make, pairs
from tests.tiny.bundle import CALIBRATION, Tiny, calibrated, with_likelihood_weight

NOTHING = Handle()


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Iterator[CModel]:
    opened = CModel(tiny.path, threads=1)
    opened.use(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    yield opened
    opened.close()


def fault_of(name: str, *arguments: Any) -> str:
    with pytest.raises(CError) as caught:
        call(name, *arguments)
    assert caught.value.kind == "argument"
    return str(caught.value)


def test_null_is_an_argument_error(model: CModel) -> None:
    out, m, f, none = ctypes.byref(Handle()), model.handle, model.features, pairs({})
    for name, arguments, fault in (
        ("load", (None, none, None), "model is NULL: pass a pointer"),
        ("image_file", (NOTHING, b"x", out), "model is NULL: pass a blip2rt_model"),
        ("image_file", (m, None, out), "path is NULL: pass a pointer"),
        ("image_file", (m, b"x", None), "image is NULL: pass a pointer"),
        ("image_bytes", (m, None, ctypes.c_size_t(1), out), "bytes is NULL: pass a pointer"),
        ("encode", (m, NOTHING, out), "image is NULL: pass a blip2rt_image"),
        ("caption", (m, NOTHING, None, none, None, None, out), "features is NULL: pass a blip2rt_features"),
        ("caption", (m, f, None, none, None, None, None), "texts is NULL: pass a pointer"),
        ("ask", (m, f, None, none, None, None, out), "question is NULL: pass a pointer"),
        ("match", (m, f, None, None, None, None), "text is NULL: pass a pointer"),
        ("chat_ask", (NOTHING, b"x", none, None, None, out), "chat is NULL: pass a blip2rt_chat"),
    ):
        assert fault_of(name, *arguments) == fault
    for name in ("model", "image", "features", "chat", "texts", "error"):
        getattr(library(), f"blip2rt_{name}_free")(NOTHING)
    assert library().blip2rt_texts_get(NOTHING, 0) is None and library().blip2rt_texts_count(NOTHING) == 0
    assert library().blip2rt_error_message(NOTHING) is None
    assert library().blip2rt_match(NOTHING, NOTHING, None, None, None, None, None) == 1  # without an error to fill


def test_freed_and_foreign_handles_are_argument_errors(model: CModel, tiny: Tiny) -> None:
    freed, m, f = CModel(tiny.path, threads=1), model.handle, model.features
    freed.close()
    freed.close()  # freeing again does nothing
    out = ctypes.byref(Handle())
    for handle in (freed.handle, f, Handle(12345), Handle(2**64 - 1)):
        assert "model was freed, or is no blip2rt_model" in fault_of("image_file", handle, b"x", out)
    assert "image was freed" in fault_of("encode", m, f, out)
    other = CModel(tiny.path, threads=1)
    assert "the features are of another model" in fault_of("match", other.handle, f, b"a", None, None, None)
    other.close()


def test_a_model_is_freed_when_the_last_call_ends(tiny: Tiny) -> None:
    model = CModel(tiny.path, threads=1)
    model.use(np.zeros((9, 9, 3), np.uint8))

    def free(piece: str) -> int:
        library().blip2rt_model_free(model.handle)
        library().blip2rt_features_free(model.features)
        return 0

    assert model.caption(None, free, num_beams=1, min_new_tokens=4)[0].tokens
    with pytest.raises(CError, match="freed"):
        model.caption()


def test_unknown_and_odd_options(model: CModel) -> None:
    with pytest.raises(CError) as caught:
        model.caption(beams=2, Top_K=1, num_beams=0, temperature="hot")
    unknown, *others = caught.value.faults
    assert unknown.startswith("unknown option beams, Top_K: choose from num_captions, num_beams, max_new_tokens")
    assert [fault.split()[0] for fault in others] == ["num_beams", "temperature"]
    with pytest.raises(CError, match="unknown option raw"):
        model.ask("what?", raw=True)
    odd = (ctypes.c_char_p * 2)(b"num_beams", None)
    out = ctypes.byref(Handle())
    assert "has no value" in fault_of("caption", model.handle, model.features, None, odd, None, None, out)
    for options in ({"threads": 0}, {"verify": "yes"}, {"color": "bgr"}, {"max_pixels": 0}, {"run_timeout": 0}):
        with pytest.raises(CError, match=next(iter(options))):
            make("load", None, pairs(options))


def test_texts_that_are_no_text(model: CModel) -> None:
    out, none = ctypes.byref(Handle()), pairs({})
    for text in (b"\xff", b"a \xed\xa0\x80", b"\xc3"):
        assert "not valid UTF-8" in fault_of("ask", model.handle, model.features, text, none, None, None, out)
        assert "not valid UTF-8" in fault_of("match", model.handle, model.features, text, None, None, None)
    with pytest.raises(CError, match="a text has 10,000 characters, too many for the model"):
        model.caption("a" * 10_000)


def test_strides_and_formats(model: CModel, tiny: Tiny) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    model.use(rgba[..., :3])
    wanted = model.embed()
    padded = np.zeros((7, 9, 4), np.uint8)
    padded[:, :5] = rgba
    upside_down = np.ascontiguousarray(padded[::-1])
    sizes = ctypes.c_size_t(5), ctypes.c_size_t(7)
    last_row = upside_down.ctypes.data + 6 * 36
    for data, stride, kind in (
        (rgba.ctypes.data, 0, 2),
        (padded.ctypes.data, 36, 2),
        (last_row, -36, 2),
        (np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]).ctypes.data, 20, 3),
        (np.ascontiguousarray(rgba[..., 2::-1]).ctypes.data, 15, 1),
    ):
        keep = model.features
        pixels = (ctypes.c_char * 252).from_address(data) if stride >= 0 else ctypes.c_void_p(data)
        image = make("image_pixels", model.handle, pixels, *sizes, ctypes.c_ssize_t(stride), kind)
        model.features = make("encode", model.handle, image)
        assert model.embed() == wanted, (stride, kind)
        library().blip2rt_features_free(keep)
    for width, stride, kind, message in (
        (5, 19, 2, "stride is 19, but a row has 20 bytes"),
        (5, 0, 7, "format is 7"),
        (0, 0, 0, "0 x 7 pixels"),
        (2**63, 0, 0, "give 1 to 65,535 a side"),
    ):
        sizes = ctypes.c_size_t(width), ctypes.c_size_t(7)
        with pytest.raises(CError, match=message):
            make("image_pixels", model.handle, rgba.tobytes(), *sizes, ctypes.c_ssize_t(stride), kind)


def test_sixteen_threads_say_what_one_says(model: CModel) -> None:
    wanted = model.caption(num_captions=2), model.ask("who?"), model.match("a dog")

    def work(_: int) -> Any:
        return model.caption(num_captions=2), model.ask("who?"), model.match("a dog")

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(80))) == [wanted] * 80


def test_damaged_bundles_are_model_errors(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.path, tmp_path / "altered"))
    data = bytearray((folder / "vision.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "vision.onnx").write_bytes(data)
    with pytest.raises(CError, match=r"the sha256 of vision.onnx differs from the manifest's") as caught:
        CModel(folder, verify=True)
    assert caught.value.kind == "model"
    nul = b'{"format": "blip2rt-bundle", "format_version": "\\u0000"}'
    for damage, message in ((b"{", "is damaged: not JSON"), (nul, "'\ufffd', not a whole number")):
        (folder / "blip2rt.json").write_bytes(damage)
        with pytest.raises(CError, match=message):
            CModel(folder)
        with pytest.raises(BundleError, match=message):
            blip2rt.load(folder)
    CModel(tiny.path, verify=True).close()


def test_a_thousand_rounds_of_all_calls_leak_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """LeakSanitizer finds what nothing points to; the resident memory shows what is kept."""
    built = build("blip2rt")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "photo.png")
    program, source = tmp_path / "all_calls", ROOT / "tests" / "c" / "native" / "all_calls.c"
    flags = f"-fsanitize=leak -pthread -I{ROOT}/engines/c/include -L{built} -lblip2rt -Wl,-rpath,{built}".split()
    run("cc", str(source), *flags, "-o", str(program))
    folder = calibrated(with_likelihood_weight(tiny, tmp_path / "calibrated", 0.4), CALIBRATION)
    command = [program, folder, find_library(), tmp_path / "photo.png", "1000", "1"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late < early + 4096, "KiB"
