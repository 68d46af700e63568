"""Captioning and filtering: ranking, kept captions, tables and shards, resuming."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2rt.errors import Blip2rtError
from tests.tiny.bundle import tiny_bundle
from tests.tiny.training import caption_table
from tests.train.arguments import options
from train import prepare
from train.capfilt import (
    CapFilt,
    CapFiltSettings,
    CaptionPool,
    ClipScorer,
    FilterOptions,
    distinct,
    filter_dataset,
    filter_list,
    filter_shards,
)
from train.data.readers import read_data
from train.data.samples import BadSamples
from train.data.shards import Shards, expand_shards
from train.evaluation.predictions import Predictions

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours:
    """A scorer that sees the mean colour of an image and reads names of colours."""

    def images(self, paths: Sequence[Path]) -> np.ndarray:
        means = [np.asarray(Image.open(path).convert("RGB"), np.float32).mean((0, 1)) for path in paths]
        return np.stack([np.stack((np.zeros(3), mean / np.linalg.norm(mean))) for mean in means]).astype(np.float32)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        sums = np.array([[float(name in text.split()) for name in COLOURS] for text in texts], np.float32)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)


class Captioner:
    """Its best caption is grey; the seed chooses the colour of sampled ones. Counts the images it captioned."""

    def __init__(self) -> None:
        self.seen = 0

    def caption(self, images: Sequence[Path], **options: Any) -> list[str]:
        if not options:
            self.seen += len(images)
            return ["grey all over"] * len(images)
        assert options["do_sample"] and options["top_p"] == 0.9
        return [f"drawn {list(COLOURS)[options['seed'] % 3]}"] * len(images)


def coloured(folder: Path) -> Path:
    """A table of a red, a green and a blue image: right, wrong and no caption, and a question."""
    (folder / "images").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{name}.png")
    table = folder / "table.tsv"
    rows = ["red.png\ta red thing\t", "green.png\ta blue thing\t", "blue.png\tyes\tis it cold?"]
    table.write_text("image\tcaption\tprompt\n" + "".join(f"{row}\n" for row in rows))
    return table


def work(bad: BadSamples | None = None) -> FilterOptions:
    return FilterOptions({"seed": 0}, 2, BadSamples(0) if bad is None else bad)


def pool(folder: Path) -> CaptionPool:
    (folder / "pool.txt").write_text("one green leaf\nblue as the sea\n\nred red red\n")
    bad = BadSamples(1)
    found = CaptionPool(folder / "pool.txt", Colours(), bad)
    assert list(bad.found) == [f"{folder / 'pool.txt'}, line 3"]
    return found


def test_best_of_all_candidate_captions_stay(tmp_path: Path) -> None:
    table = coloured(tmp_path)
    capfilt = CapFilt(Captioner(), Colours(), pool(tmp_path), CapFiltSettings(keep=2, own=3, retrieved=1))  # type: ignore[arg-type]
    assert filter_list(str(table), str(tmp_path / "images"), tmp_path / "out.tsv", capfilt, work()) == 3
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    kept = {"red": ["a red thing", "drawn red"], "green": ["drawn green", "one green leaf"]}
    kept["blue"] = ["drawn blue", "blue as the sea"]
    rows = [f"{name}.png\t{text}\t" for name, texts in kept.items() for text in texts]
    assert lines == ["image\tcaption\tprompt", *rows, "blue.png\tyes\tis it cold?"]
    assert not (tmp_path / "out.tsv.partial.jsonl").exists()


def test_existing_captions_are_ranked_without_a_captioner(tmp_path: Path) -> None:
    table = coloured(tmp_path)
    with table.open("a") as file:
        file.write("red.png\ta blue thing\t\nred.png\tA  red thing!\t\n")
    data = read_data(table, tmp_path / "images")
    found = filter_dataset(data, CapFilt(None, Colours(), None, CapFiltSettings(keep=9)), Predictions(None, {}), work())
    assert [s.text for s in found.by_image()[0]] == ["a red thing", "a blue thing"]
    assert [s.text for s in found.by_image()[2]] == ["yes"]


def test_answers_keep_their_counts(tmp_path: Path) -> None:
    coloured(tmp_path)
    images, listed, out = tmp_path / "images", tmp_path / "answers.jsonl", tmp_path / "out.tsv"
    asked = {"image": "red.png", "question": "is it red?", "answers": {"yes": 9, "no": 1}}
    listed.write_text(json.dumps(asked) + '\n{"image": "red.png", "caption": "red"}\n')
    assert filter_list(str(listed), str(images), out, CapFilt(None, Colours(), None, CapFiltSettings()), work()) == 1
    assert set(read_data(out, images).samples) == set(read_data(listed, images).samples)


def test_interrupted_run_resumes(tmp_path: Path) -> None:
    table, captioner = coloured(tmp_path), Captioner()
    capfilt = CapFilt(captioner, Colours(), None, CapFiltSettings(own=1))  # type: ignore[arg-type]

    class Broken(Colours):
        def images(self, paths: Sequence[Path]) -> np.ndarray:
            if paths[0].name == "blue.png":
                raise KeyboardInterrupt
            return super().images(paths)

    capfilt.scorer = Broken()
    arguments = (str(table), str(tmp_path / "images"), tmp_path / "out.tsv", capfilt, work())
    with pytest.raises(KeyboardInterrupt):
        filter_list(*arguments)
    assert captioner.seen == 2 and not (tmp_path / "out.tsv").exists()
    capfilt.scorer = Colours()
    assert filter_list(*arguments) == 3
    assert captioner.seen == 3, "two images were done"


def test_shards_are_filtered_to_shards(tmp_path: Path) -> None:
    table = coloured(tmp_path)
    arguments = ["--data", str(table), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "in")]
    assert prepare.main(["shards", *arguments, "--per-shard", "2"]) == 0
    capfilt = CapFilt(Captioner(), Colours(), None, CapFiltSettings(keep=1, own=3))  # type: ignore[arg-type]
    out = tmp_path / "out"
    assert filter_shards(str(tmp_path / "in"), out, tmp_path / "cache", capfilt, work()) == 3
    assert [path.name for path in expand_shards(str(out))] == ["000000.tar", "000001.tar"]
    assert not [path for path in out.iterdir() if path.suffix != ".tar"], "nothing is left behind"
    shards = Shards(str(out), tmp_path / "cache")
    said = {tuple(sample.text for sample in shards.read(number)[1]) for number in range(3)}
    assert said == {("a red thing",), ("drawn green",), ("drawn blue", "yes")}
    with tarfile.open(out / "000000.tar") as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"png", "json"}
    (out / "000001.tar").unlink()
    assert filter_shards(str(tmp_path / "in"), out, tmp_path / "cache", capfilt, work()) == 1, "one shard was there"


def test_folder_needs_no_captions_and_counts_bad_images(tmp_path: Path) -> None:
    coloured(tmp_path)
    folder = tmp_path / "images"
    (folder / "red.txt").write_text("a red text\n")
    (folder / "broken.jpg").write_bytes(b"no image")
    bad = BadSamples(1)
    capfilt = CapFilt(Captioner(), Colours(), None, CapFiltSettings(keep=1, own=2))  # type: ignore[arg-type]
    assert filter_list(str(folder), "", tmp_path / "out.tsv", capfilt, work(bad)) == 3
    assert (tmp_path / "out.tsv").read_text().splitlines()[1:] == [
        "blue.png\tgrey all over\t",
        "green.png\tdrawn green\t",
        "red.png\ta red text\t",
    ]
    assert list(bad.found) == [str(folder / "broken.jpg")]


def test_bundle_captions_and_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_bundle(tmp_path / "bundle", 3)
    table = caption_table(tmp_path, 3)
    given = read_data(table, tmp_path / "images")
    arguments = options(data=table, images=tmp_path / "images", own=2, keep=3)
    arguments = ["capfilt", *arguments, *options(captioner=tmp_path / "bundle", out=tmp_path / "out.tsv")]
    assert prepare.main(arguments) == 0, capsys.readouterr().err
    found = read_data(tmp_path / "out.tsv", tmp_path / "images")
    assert [path.name for path in found.paths] == [path.name for path in given.paths]
    assert all(1 <= sum(not s.prompt for s in group) <= 3 for group in found.by_image())


def test_clip_ranks(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    from tests.tiny.training import bert_folder

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert_folder(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    text = small | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "eos_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    coloured(tmp_path)
    scorer = ClipScorer(str(tmp_path / "clip"))
    images = scorer.images([tmp_path / "images" / "red.png", tmp_path / "images" / "blue.png"])
    texts = scorer.texts(["a dog", "a dog runs " * 20])
    assert images.shape == (2, 1, 8) and texts.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, rtol=1e-5)


def test_duplicate_texts_are_dropped() -> None:
    assert distinct(["A dog.", "a  dog", "", "...", "a cat"]) == ["A dog.", "a cat"]


def test_capfilt_errors_are_one_line(tmp_path: Path, error_of: Any) -> None:
    table = coloured(tmp_path)
    data = ["capfilt", "--data", str(table), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "o.tsv")]
    assert "give --captioner, or --scorer" in error_of(prepare.main, data)
    with pytest.raises(Blip2rtError, match="does not exist: give a file with one caption per line"):
        CaptionPool(tmp_path / "no.txt", Colours(), BadSamples(0))
    assert "is not a CLIP model" in error_of(prepare.main, [*data, "--scorer", f"clip:{tmp_path}"])
