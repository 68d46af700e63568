"""The maps of a caption's words, against numpy; `blip2rt explain`."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt import cli
from blip2rt.bundle import ATTENTION, GENERATIVE, VISION
from blip2rt.bundle.writer import BundleWriter
from blip2rt.errors import CapabilityError, OptionError
from blip2rt.image import to_pixels
from tests.tiny.bundle import WORDS, C, N, Q, Tiny, build_graphs, make_manifest, parse_graph, save_llm_tokenizer

onnx = pytest.importorskip("onnx")
GRID = (2, 3)
TEXT = "a red dog sits on the grass"


@pytest.fixture
def explaining(tiny: Tiny, tmp_path: Path) -> Path:
    """The tiny bundle with maps in which query i attends to patch i alone."""
    source = f"""
        (float[B,{N},{C}] vision_features) => (float[B,{Q},{GRID[0]},{GRID[1]}] attention_maps) {{
            batch = Shape <start = 0, end = 1> (vision_features)
            shape = Concat <axis = 0> (batch, rest)
            attention_maps = Expand (maps, shape)
        }}"""
    constants = {"maps": np.eye(Q, N, dtype=np.float32).reshape(1, Q, *GRID), "rest": np.array([Q, *GRID])}
    graphs = {name: build_graphs(onnx, tiny.weights)[name] for name in (VISION, *GENERATIVE)}
    graphs[ATTENTION] = parse_graph(onnx, source, constants, 19, 9)
    with BundleWriter(tmp_path / "explaining") as writer:
        for name, graph in graphs.items():
            onnx.save(graph, writer.folder / f"{name}.onnx")
        save_llm_tokenizer(writer.folder / "tokenizer.json")
        writer.finish(make_manifest(graphs, True, False))
    return tmp_path / "explaining"


def log_likelihoods(tiny: Tiny, prefix: np.ndarray, text: str) -> np.ndarray:
    """log p of each word, in numpy."""
    ids = [WORDS.index(word) for word in text.split()]
    rows = []
    for i, token in enumerate(ids):
        logits = tiny.logits(np.concatenate([prefix, tiny.weights["embed"][ids[:i]]])).astype(np.float64)
        rows.append(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return np.array(rows)


def test_maps_weigh_queries_by_what_a_word_loses_without_them(tiny, explaining, photo) -> None:
    model, image = blip2rt.load(explaining, threads=1), photo(20, 30)
    prefix = tiny.prefix(tiny.vision(to_pixels([image], model.bundle.manifest.image)))[0]
    own, lost = log_likelihoods(tiny, prefix, TEXT), []
    for query in range(Q):
        without = prefix.copy()
        without[query] = prefix.mean(0)
        lost.append(np.maximum(own - log_likelihoods(tiny, without, TEXT), 0))
    loss = np.array(lost).T  # (words, Q); a word that loses nothing weighs all queries alike
    want = np.where(loss.sum(1, keepdims=True) > 0, loss, 1) / np.where(loss.sum(1) > 0, loss.sum(1), Q)[:, None]
    found = model.attention(image, TEXT)
    assert [word for word, _ in found] == TEXT.split()
    for (_, heat), weights in zip(found, want, strict=True):
        assert heat.shape == GRID and heat.dtype == np.float32
        np.testing.assert_allclose(heat.reshape(-1)[:Q], weights, atol=2e-3)
    assert [word for word, _ in model.attention(image)] == model.caption(image).split()
    with pytest.raises(OptionError, match="text has no words"):
        model.attention(image, " ")


def test_bundles_without_maps_say_so(tiny, photo) -> None:
    with pytest.raises(CapabilityError, match="'tiny' cannot explain a caption: it lacks attention; export it again"):
        blip2rt.load(tiny.path, threads=1).attention(photo(5, 5))


def test_explain_writes_a_picture(explaining, photo, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo(20, 30)).save("a.jpg")
    command = ["explain", "a.jpg", "--model", str(explaining), "--text", TEXT]

    def run(*more: str) -> tuple[int, str, str]:
        return cli.main([*command, *more]), *capsys.readouterr()

    assert run() == (0, f"{TEXT}\ta-explained.png\n", "")
    width, height = Image.open("a-explained.png").size
    assert (width // 4, height // 2) == (384, 256)  # 7 tiles in two rows, of the model's 12 x 8 pixels
    assert run("Dog!", "--out", "dog.png")[0] == 0 and Image.open("dog.png").size == (384, 256)
    Path("link.png").symlink_to("elsewhere.png")
    for more, fault in (
        (["cat"], "lacks the word 'cat'"),
        ([], "'a-explained.png' exists: give another --out, or --overwrite"),
        (["--out", "a.jpg"], "ends in .png"),
        (["--out", "none/a.png"], "cannot write 'none/a.png': No such file"),
        (["--out", "link.png", "--overwrite"], "cannot write 'link.png'"),
    ):
        status, out, error = run(*more, *["--overwrite"] * (more == ["cat"]))
        assert status == 2 and not out and fault in error and error.count("\n") == 1, error
    assert run("--overwrite")[0] == 0
    with open("a.jpg", "rb") as image:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=image))
        assert cli.main(["explain", "-", *command[2:]]) == 0 and Path("image-explained.png").exists()
