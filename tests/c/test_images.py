"""engines/media decodes, turns and resizes images exactly as blip2rt.image does."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from blip2rt.bundle.manifest import ImageSpec
from blip2rt.errors import ImageError
from blip2rt.image import MAX_PIXELS, prepare
from tests.c import odd_images
from tests.c.build import build, build_sanitized
from tests.seeds import new_seed

COUNT = 170  # of each format
MAKERS = (odd_images.jpeg, odd_images.png, odd_images.webp)

# Earlier releases resize horizontally first always.
newest = pytest.mark.skipif(int(Image.__version__.split(".")[0]) < 13, reason="compares with Pillow 13's resizing")


def prepared(paths: list[Path], spec: ImageSpec, max_pixels: int, scaled: bool) -> Iterator[np.ndarray | str]:
    """What engines/media makes of files: pixels, or the message of the error."""
    arguments = map(str, (spec.width, spec.height, spec.resample, max_pixels, int(scaled)))
    names = "".join(f"{path}\n" for path in paths).encode()
    output = subprocess.run(
        [build("image_check") / "image_check", *arguments], input=names, stdout=subprocess.PIPE, check=True
    ).stdout
    for _ in paths:
        line, _, output = output.partition(b"\n")
        if line == b"ok":
            shape = spec.height, spec.width, 3
            yield np.frombuffer(output[: np.prod(shape)], np.uint8).reshape(shape)
            output = output[np.prod(shape) :]
        else:
            yield line.decode()


def expected(path: Path, spec: ImageSpec, max_pixels: int, scaled: bool) -> np.ndarray | str:
    try:
        return prepare(path, spec, scaled=scaled, max_pixels=max_pixels)
    except ImageError as error:
        return str(error)


def spec_of(width: int, height: int, resample: str) -> ImageSpec:
    return ImageSpec(height, width, resample, (0.0,) * 3, (1.0,) * 3)


@newest
@pytest.mark.skipif(not features.check("libjpeg_turbo"), reason="compares with Pillow's libjpeg-turbo")
@pytest.mark.parametrize(
    ("spec", "max_pixels", "scaled"),
    [
        (spec_of(32, 24, "bicubic"), MAX_PIXELS, False),
        (spec_of(16, 16, "lanczos"), 3000, True),
        (spec_of(20, 48, "nearest"), MAX_PIXELS, True),
    ],
)
def test_odd_images_have_blip2rt_images_pixels(tmp_path: Path, spec: ImageSpec, max_pixels: int, scaled: bool) -> None:
    rng = np.random.default_rng(new_seed())
    paths = [tmp_path / f"{make.__name__}-{i}" for make in MAKERS for i in range(COUNT)]
    for path in paths:
        path.write_bytes(getattr(odd_images, path.name.split("-")[0])(rng))
    decoded = 0
    for path, found in zip(paths, prepared(paths, spec, max_pixels, scaled), strict=True):
        wanted = expected(path, spec, max_pixels, scaled)
        assert isinstance(found, str) == isinstance(wanted, str), f"{path}: {found}, blip2rt.image: {wanted}"
        if not isinstance(found, str):
            assert np.array_equal(found, wanted), path
            decoded += 1
    assert decoded > len(paths) / 2


def test_messages_are_those_of_blip2rt_image(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("not an image")
    Image.new("L", (70_000, 1)).save(tmp_path / "wide", "PNG")
    Image.new("L", (100, 100)).save(tmp_path / "large", "PNG")
    names = [tmp_path, tmp_path / "nothing", tmp_path / "empty", tmp_path / "wide", tmp_path / "large"]
    spec = spec_of(8, 8, "bicubic")
    for path, found in zip(names, prepared(names, spec, 9_999, False), strict=True):
        wanted = expected(path, spec, 9_999, False)
        assert found == str(wanted).replace("--max-pixels N, load(max_pixels=N)", "max_pixels")
    [text] = prepared([tmp_path / "text"], spec, MAX_PIXELS, False)
    assert text == f"'{tmp_path / 'text'}' is not an image: give one of JPEG, PNG, WEBP"


def test_a_limit_is_checked_before_memory_is_taken(tmp_path: Path) -> None:
    header = odd_images.chunk(b"IHDR", bytes.fromhex("0000fff00000fff00806000000"))  # 65,520 x 65,520 of RGBA
    file = tmp_path / "bomb.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + odd_images.chunk(b"IDAT", b"") + odd_images.chunk(b"IEND", b""))
    command = f"ulimit -v 200000; echo {file} | {build('image_check') / 'image_check'} 8 8 bicubic {MAX_PIXELS} 0"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "has 65520 x 65520 pixels, more than 50,000,000" in done.stdout


@pytest.mark.long(9, "a sanitized program on hundreds of files")
def test_damaged_files_read_no_foreign_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(new_seed())
    paths = [tmp_path / str(i) for i in range(400)]
    for path in paths:
        path.write_bytes(odd_images.damaged(rng))
    sources = "engines/media/*.cpp", "engines/kernels/resize/*.cpp", "engines/base/utf8.cpp", "engines/base/system.cpp"
    program = build_sanitized(tmp_path / "check", *sources, "tests/c/native/image_check.cpp")
    names = "".join(f"{path}\n" for path in paths).encode()
    done = subprocess.run([program, "16", "16", "bicubic", str(MAX_PIXELS), "0"], input=names, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert b"is damaged" in done.stdout
