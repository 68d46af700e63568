"""Each extra with nano, as users install it: what needs the extra works."""

import json
import os
import shutil
from importlib.metadata import metadata
from pathlib import Path

import pytest
from PIL import Image
from pyarrow import parquet

from tests.shipped.environment import ROOT, Environment

pytestmark = pytest.mark.long(20, "installed wheels with each extra, on nano")

PHOTO = ROOT / "docs" / "photo.jpg"
COMMIT = "0" * 40
# Where each extra is tested with nano. What trains or exports nano takes minutes, and runs at night.
TESTED = {
    **dict.fromkeys(("nano", "parquet", "heic", "gallery", "hub", "eval"), __file__),
    **dict.fromkeys(("train", "export"), "tests/docs/test_own_data.py"),
    **dict.fromkeys(("optimum", "lora"), "tests/shipped/test_nano_checkpoint.py"),
    "ray": "tests/integrations/test_ray_cluster.py",
    "serve": "tests/serve/test_routes.py",
    "bench": "tests/shipped/test_mission.py",
    # Without a model, or with a GPU.
    **dict.fromkeys(("docs", "dev", "trt-check", "trt-cu12", "trt-cu13"), "Makefile"),
}


@pytest.fixture(scope="module")
def photos(shipped: Environment) -> Environment:
    """The environment, with a photograph in three formats."""
    folder = shipped.folder / "photos"
    folder.mkdir()
    shutil.copy(PHOTO, folder / "a.jpg")
    Image.open(PHOTO).rotate(90).save(folder / "b.png")
    shutil.copy(ROOT / "tests" / "gallery" / "kitten.heic", folder / "c.heic")
    return shipped


def test_every_extra_is_tested() -> None:
    assert {*(metadata("blip2rt").get_all("Provides-Extra") or ())} == {*TESTED}
    assert all((ROOT / path).exists() for path in TESTED.values())


def test_heic_and_parquet(photos: Environment) -> None:
    photos.run("blip2rt", "caption", "-r", "photos", "--out", "captions.parquet")
    rows = parquet.read_table(photos.folder / "captions.parquet").to_pylist()
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "b.png", "c.heic"]
    assert rows[0]["caption"] + "\n" == photos.run("blip2rt", "caption", "photos/a.jpg")


def test_gallery(photos: Environment) -> None:
    photos.run("blip2rt", "index", "photos", "--out", "nano-index")
    assert "a.jpg" in photos.run("blip2rt", "search", "nano-index", "a cat")


def test_eval(photos: Environment) -> None:
    (photos.folder / "told.tsv").write_text("image\tcaption\na.jpg\ta cat on a couch\n")
    photos.run(*"blip2rt-train evaluate caption --data told.tsv --images photos --json nano.json".split())
    assert json.loads((photos.folder / "nano.json").read_text())["cider"] >= 0


def test_hub(photos: Environment) -> None:
    """A copy of nano in the hub's cache."""
    code = "from blip2rt.bundle import embedded; print(embedded())"
    nano = Path(photos.run("python", "-c", code).strip())
    copy = photos.folder / "home" / ".cache" / "blip2rt" / "models" / "me--nano" / COMMIT
    shutil.copytree(nano, copy, copy_function=os.link)
    assert photos.run("blip2rt", "caption", "photos/a.jpg", "--model", f"hf://me/nano@{COMMIT}").strip()
