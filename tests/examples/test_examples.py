"""Every example runs on the embedded model and the photograph of the README."""

import ast
import io
import runpy
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

import blip2rt

pytestmark = pytest.mark.long(8, "each example with the embedded model")

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "docs" / "photo.jpg"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CAPTION = "a cup of coffee sitting on a table"


def run(name: str, *arguments: object, stdin: str = "", code: int = 0) -> str:
    """Run examples/NAME.py as a program and return its output."""
    words, said, left = [name, *map(str, arguments)], io.StringIO(), 0
    with patch("sys.argv", words), patch("sys.stdin", io.StringIO(stdin)), redirect_stdout(said):
        try:
            runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            left = 1 if stop.code else 0
    assert left == code, said.getvalue()
    return said.getvalue()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_documented_and_listed(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 40
    assert f"examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")
    assert f"[{path.name}]({path.name})" in (ROOT / "examples" / "README.md").read_text()


def test_caption() -> None:
    lines = run("caption", PHOTO).splitlines()
    assert lines[0] == f"{PHOTO}: {CAPTION}"
    assert lines[2].endswith(blip2rt.caption(PHOTO, num_beams=5)), "the best of five beams"
    assert len(lines) == 9 and len(set(lines[6:])) == 3


def test_ask_and_stream() -> None:
    question = "what colour is the cup?"
    asked, streamed, caption = run("ask_and_stream", PHOTO, question).splitlines()
    assert asked.removeprefix(question).strip() and streamed
    assert CAPTION.startswith(caption.removesuffix("...").strip())


def test_chat_answers_every_line() -> None:
    output = run("chat", PHOTO, stdin="what colour is the cup?\nwhat is in it?\n")
    answers = [line for line in output.split("you: ") if line.startswith("model: ")]
    assert len(answers) == 2 and all(answer.removeprefix("model: ").strip() for answer in answers)


def test_retrieval_ranks_the_photograph_before_a_diagram() -> None:
    lines = run("retrieval", "a cup on a table", ROOT / "docs" / "images" / "opt-2.7b-scaling.png", PHOTO).splitlines()
    assert [line.split()[-1] for line in lines] == [str(PHOTO), str(ROOT / "docs" / "images" / "opt-2.7b-scaling.png")]


def test_webcam_captions_numbered_images(tmp_path: Path) -> None:
    for i in range(3):
        Image.open(PHOTO).save(tmp_path / f"{i}.png")
    lines = run("webcam", "--source", tmp_path / "%d.png", "--every", 0).splitlines()
    greedy = blip2rt.caption(PHOTO, num_beams=1)
    assert [line.split("s  ", 1)[1] for line in lines] == [greedy] * 3, "the colour channels are in the right order"


def test_readme_picture_is_current(tmp_path: Path) -> None:
    run("picture", PHOTO, tmp_path / "caption.png")
    pictures = tmp_path / "caption.png", ROOT / "docs" / "images" / "caption.png"
    made, shown = (Image.open(path).convert("RGB") for path in pictures)
    assert made.size == shown.size
    difference = np.abs(np.asarray(made, np.float32) - np.asarray(shown, np.float32))
    assert difference.mean() < 1, "Pillow versions draw letters slightly differently"


@pytest.mark.slow
def test_finetune_creates_a_bundle_that_captions(tmp_path: Path) -> None:
    import torch

    from tests.tiny import blip2

    torch.manual_seed(0)
    blip2.generative(tmp_path / "opt", blip2.TEXT_CONFIGS["opt"]())
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        Image.open(PHOTO).rotate(90 * i).save(photos / f"{i}.jpg")
        (photos / f"{i}.txt").write_text("a cup stands on a red saucer\nthe cup\n")
    small = "--steps 2 --warmup 1 --batch-size 4 --views 1 --precision fp32".split()
    places = [f"--{name}={tmp_path / folder}" for name, folder in (("start", "opt"), ("run", "run"), ("out", "bundle"))]
    output = run("finetune", photos, *places, *small, "--features", tmp_path / "features")
    assert output.splitlines()[-1].startswith(f"{photos / '0.jpg'}:")
    assert (tmp_path / "bundle" / "blip2rt.json").is_file()
