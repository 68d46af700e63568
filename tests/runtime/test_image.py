"""Images: accepted inputs and their pixels, parity with Hugging Face, and rejected inputs."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt.bundle.manifest import ImageSpec
from blip2rt.errors import ImageError
from blip2rt.image import SCALED_TOLERANCE, load_rgb, prepare, resize, to_pixels
from blip2rt.native import native
from blip2rt.pixels import modes
from tests.seeds import seed_of

SEED = seed_of(__name__)
SPEC = ImageSpec(24, 32, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(image) -> np.ndarray:
    loaded = load_rgb(image)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_pixels_equal_hugging_face(rng, resample):
    pil = pytest.importorskip("transformers.models.blip.image_processing_pil_blip")
    for _ in range(8):
        height, width, high, wide = rng.integers(1, 90, 4).tolist()
        mean, std = rng.uniform(0.1, 0.9, 3).tolist(), rng.uniform(0.2, 0.9, 3).tolist()
        kind = int(Image.Resampling[resample.upper()])
        processor = pil.BlipImageProcessorPil(
            size={"height": height, "width": width}, resample=kind, image_mean=mean, image_std=std
        )
        image = Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        if rng.random() < 0.3:
            image = image.convert(str(rng.choice(["L", "CMYK", "YCbCr"])))
        want = np.stack(processor(image, return_tensors="np")["pixel_values"])
        got = to_pixels([image], ImageSpec(height, width, resample, tuple(mean), tuple(std)))
        assert got.shape == (1, 3, height, width) and got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_resize_equals_pillow(rng, resample):
    sizes = rng.choice([1, 2, 3, 7, 50, 51, 224, 400, 511], (60, 4)).tolist()
    sizes += [[130, 1100, 24, 24], [1100, 130, 24, 24], [290, 109, 166, 7], [70, 60, 70, 20], [70, 60, 20, 60]]
    for width, height, *to in sizes:
        values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(values if rng.random() < 0.5 else values // 128 * 255)
        want = np.asarray(picture.resize(tuple(to), Image.Resampling[resample.upper()]))
        np.testing.assert_array_equal(resize(picture, tuple(to), resample), want, err_msg=f"{picture.size} to {to}")


def test_invalid_rows_are_rejected():
    begin = native.Resize
    with pytest.raises(ValueError, match="unknown filter spline"):
        begin((1, 1), (1, 1), "spline")
    for sizes in [(2, 0), (1, 1)], [(2, 1), (0, 1)]:
        with pytest.raises(ValueError, match="no pixels"):
            begin(*sizes, "bicubic")
    picture = begin((2, 2), (1, 1), "bicubic")
    for rows, error in (bytes(12), "no whole rows"), (bytes(24), "more rows were added"):
        with pytest.raises(ValueError, match=error):
            picture.add(rows)
    picture.add(bytes(8))
    with pytest.raises(ValueError, match="not all rows"):
        picture.result()
    picture.add(b"\x07" * 8)
    assert picture.result().shape == (1, 1, 3)


def test_all_input_types_give_the_same_pixels(rng, tmp_path):
    array = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    data = encode(Image.fromarray(array))
    path = tmp_path / "ünï côdé 图.png"
    path.write_bytes(data)
    kinds = [array, array[:, ::-1][:, ::-1], Image.fromarray(array), data, bytearray(data), memoryview(data)]
    kinds += [path, str(path), array.astype(np.float32) / 255, array.astype(np.float64) / 255]
    for image in kinds:
        np.testing.assert_array_equal(rgb(image), array)
    assert to_pixels([], SPEC).shape == (0, 3, 24, 32)
    assert to_pixels(kinds, SPEC).shape == (len(kinds), 3, 24, 32)


def test_arrays_of_one_and_four_channels(rng):
    grey = rng.integers(0, 256, (5, 6), dtype=np.uint8)
    np.testing.assert_array_equal(rgb(grey), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(rgb(grey[:, :, None]), rgb(grey))
    four = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    np.testing.assert_array_equal(rgb(four), rgb(grey))
    four[..., 3] = 0
    assert (rgb(four) == 255).all()
    assert (rgb(np.ones((2, 2), np.float16)) == 255).all()
    np.testing.assert_array_equal(rgb(grey > 99)[..., 0], np.where(grey > 99, 255, 0))


def test_alpha_is_put_on_white():
    half_red = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert tuple(rgb(half_red)[0, 0]) == (255, 127, 127)
    assert (rgb(encode(Image.new("LA", (4, 4), (0, 0)))) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert tuple(rgb(encode(palette))[0, 0]) == (10, 20, 30)
    assert (rgb(encode(palette, transparency=1)) == 255).all()
    assert (rgb(encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))) == 255).all()
    for mode in ("RGBa", "La", "PA"):
        assert rgb(half_red.convert("LA" if mode in ("La", "PA") else "RGBA").convert(mode)).shape == (4, 4, 3)


@pytest.mark.parametrize("strip", [1, 100, 1 << 17])
def test_strips_equal_the_whole_image(rng, monkeypatch, strip):
    monkeypatch.setattr(modes, "STRIP_PIXELS", strip)
    height, width = rng.integers(1, 40, 2).tolist()
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    grey = image.convert("LA")
    pictures = [image, image.convert("RGBa"), image.quantize(64), grey.convert("La"), grey.convert("PA")]
    for mode, see_through in (("1", 255), ("L", 7), ("RGB", (1, 2, 3)), ("P", 5), ("P", rng.bytes(256))):
        pictures.append(image.convert("RGB").convert(mode))
        pictures[-1].info["transparency"] = see_through
    for picture in pictures:
        whole = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), whole).convert("RGB")
        np.testing.assert_array_equal(rgb(picture), np.asarray(whole), picture.mode)
    values = rng.integers(0, 65536, (height, width)).astype(np.uint16)
    for sixteen in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        np.testing.assert_array_equal(rgb(sixteen)[..., 0], np.rint(values * np.float32(255 / 65535)))
    with pytest.raises(ImageError, match="has values from"):
        values = np.zeros((height, width), np.int32)
        values[-1, -1] = 65536
        rgb(Image.fromarray(values))


def test_modes_1_cmyk_and_ycbcr(rng):
    bits = Image.fromarray(rng.integers(0, 2, (7, 9), dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(rgb(encode(bits))[..., 0], np.asarray(bits) * 255)
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = rgb(encode(cmyk, "JPEG", quality=95))[4, 4].astype(int)
    assert pixel[0] > 240 and pixel[1] < 15 and pixel[2] < 15
    assert rgb(Image.new("YCbCr", (3, 3))).shape == (3, 3, 3)
    assert rgb(Image.new("HSV", (3, 3))).shape == (3, 3, 3)


INVERSE = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270".split()


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white in the top left corner
    image = Image.fromarray(upright).transpose(Image.Transpose[INVERSE[orientation - 2]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = rgb(encode(image, kind, exif=exif)).astype(int)
    assert got.shape == upright.shape
    assert np.abs(got - upright).mean() < 4


def test_animations_use_their_first_frame():
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        more = frames[1:2] if kind == "MPO" else frames[1:]  # Pillow 10 writes no valid MPO of three
        data = encode(frames[0], kind, save_all=True, append_images=more)
        pixel = rgb(data)[2, 2].astype(int)
        assert np.abs(pixel - (255, 0, 0)).max() < 12, kind


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (20_000, 3)])
def test_extreme_sizes(size):
    for image in (Image.new("L", size, 128), encode(Image.new("L", size, 128))):
        assert (prepare(image, SPEC) == 128).all()


@pytest.mark.long(2, "a picture of that size")
def test_a_hundred_megapixels_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (prepare(encode(Image.new("1", (20_000, 5_000), 1)), SPEC, max_pixels=100_000_000) == 255).all()


BAD_ARRAYS = [
    (np.zeros((4, 4, 3), np.int64), ["dtype int64", "shape (4, 4, 3)", "uint8 in 0..255, float", "astype('uint8')"]),
    (np.zeros((4, 4), np.uint16), ["dtype uint16", "(array >> 8).astype('uint8') from 16 bits, or >> 4 from 12"]),
    (np.array([["a"]]), ["dtype <U1"]),
    (np.zeros((2, 5, 7), np.uint8), ["shape (2, 5, 7)"]),
    (np.zeros((2, 4, 4, 3), np.uint8), ["shape (2, 4, 4, 3)"]),
    (np.zeros((), np.uint8), ["shape ()"]),
    (np.zeros((0, 4, 3), np.uint8), ["no pixels"]),
    (np.full((2, 2, 3), 1.5), ["from 1.5 to 1.5"]),
    (np.full((2, 2, 3), -0.1), ["from -0.1"]),
    (np.array([[0.5, np.nan]]), ["from nan to nan"]),
    (np.array([[0.5, np.inf]]), ["to inf"]),
]


def test_bad_arrays_are_named():
    for array, words in BAD_ARRAYS:
        with pytest.raises(ImageError) as caught:
            load_rgb(array)
        assert all(word in str(caught.value) for word in [*words, "(H, W, 3)"]), str(caught.value)


def bad_files(folder: Path) -> dict[str, tuple[object, str]]:
    """Input -> a part of the error message."""
    jpeg = encode(Image.effect_noise((200, 200), 90), "JPEG")
    png = encode(Image.effect_noise((200, 200), 90))
    contents = {
        "text.jpg": (b"this is text\n" * 30, "not an image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged"),
        "head.jpg": (jpeg[:40], ""),
        "cut.png": (png[: len(png) // 2], "damaged"),
        "empty.jpg": (b"", "empty: 0 bytes"),
        "zeros.png": (bytes(500), "not an image"),
        "broken.png": (png[:60] + bytes(40) + png[100:], "damaged"),
        "svg.svg": (b"<svg/>", "not an image"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {
        **{name: (folder / name, word) for name, (_, word) in contents.items()},
        **{f"{name} as bytes": case for name, case in contents.items()},
        "missing": (folder / "none.jpg", "no such file"),
        "below a file": (folder / "text.jpg" / "x.jpg", ""),
        "directory": (folder, "/*.jpg"),
        "url": ("https://example.com/dog.jpg", "download the image first"),
        "empty name": ("", ""),
        "null character": ("a\0b.jpg", ""),
        "long name": ("x" * 5000, ""),
        "number": (3, "type int"),
        "none": (None, "the camera gave no frame"),
        "list": ([1, 2], "type list"),
        "mode I": (Image.fromarray(np.array([[0, 70000]], np.int32)), "values from 0 to 70000"),
        "mode F": (Image.fromarray(np.array([[0, 2.0]], np.float32)), "mode F"),
        "no pixels": (Image.new("RGB", (0, 4)), "no pixels"),
    }


def test_bad_files_are_one_line(tmp_path):
    for name, (image, word) in bad_files(tmp_path).items():
        with pytest.raises(ImageError) as caught:
            load_rgb(image)  # type: ignore[arg-type]
        assert word in str(caught.value), f"{name}: {caught.value}"
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 6000, name
        if isinstance(image, Path):
            assert str(image) in str(caught.value), name


def _large(rng, kind: str) -> Image.Image:
    """Three to four megapixels of smooth colours with grain, hard edges, or noise."""
    width, height = (int(side) for side in rng.integers(1700, 2300, 2))
    if kind == "noise":
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    coarse = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    filters = {"smooth": Image.Resampling.BICUBIC, "edges": Image.Resampling.NEAREST}
    values = np.asarray(coarse.resize((width, height), filters[kind])) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["smooth", "edges", "noise"])
def test_scaled_jpegs_are_within_the_tolerance(rng, tmp_path, kind, orientation):
    spec = ImageSpec(224, 196, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(_large(rng, kind), "JPEG", quality=90, exif=exif)
    path = tmp_path / "large.jpg"
    path.write_bytes(data)
    exact, scaled = prepare(data, spec), prepare(data, spec, scaled=True)
    assert scaled.shape == exact.shape == (224, 196, 3)
    difference = np.abs(exact.astype(float) - scaled).mean()
    assert 0 < difference <= SCALED_TOLERANCE
    assert np.array_equal(prepare(path, spec, scaled=True), scaled)


@pytest.mark.long(3, "pictures large enough to be scaled")
def test_scaled_decoding_keeps_twice_the_size_of_jpegs_only(rng):
    photo = _large(rng, "smooth")
    data = encode(photo, "JPEG", quality=90)
    assert min(load_rgb(data, 448).size) >= 448
    assert max(load_rgb(data, 448).size) < max(photo.size)
    small = ImageSpec(224, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for same in (encode(photo, "PNG"), encode(photo.resize((880, 880)), "JPEG"), np.asarray(photo), photo):
        assert np.array_equal(prepare(same, small), prepare(same, small, scaled=True))


def test_model_uses_scaled_decoding(rng, tiny):
    data = encode(_large(rng, "edges"), "JPEG", quality=90)
    exact, scaled = (blip2rt.load(tiny.path, scaled_jpeg=scaled).prepare(data) for scaled in (False, True))
    spec = blip2rt.load(tiny.path).bundle.manifest.image
    assert np.array_equal(exact, prepare(data, spec))
    assert np.array_equal(scaled, prepare(data, spec, scaled=True)) and not np.array_equal(scaled, exact)
