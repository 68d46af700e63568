"""Captioning and filtering: ranking, kept captions, tables and shards, resuming."""

import json
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2rt.errors import Blip2rtError
from blip2rt_train import prepare
from blip2rt_train.capfilt import CapFilt, CaptionPool, FilterOptions, filter_list, filter_shards
from blip2rt_train.capfilt.candidates import distinct
from blip2rt_train.capfilt.datasets import claim
from blip2rt_train.capfilt.scorers import ClipScorer
from blip2rt_train.data.readers import read_data
from blip2rt_train.data.samples import BadSamples
from blip2rt_train.data.shards import Shards, expand_shards
from blip2rt_train.evaluation.predictors import Sampling, open_predictor
from tests.tiny import blip2
from tests.tiny.bundle import tiny_bundle
from tests.tiny.training import caption_table
from tests.train.arguments import options
from tests.train.shard_files import write_shard

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours:
    """A scorer that sees the mean colour of an image and reads names of colours."""

    def prepare(self, image: Any) -> np.ndarray:
        return np.asarray(image)

    def images(self, prepared: Sequence[np.ndarray], vision_features: object = None) -> np.ndarray:
        means = [rgb.astype(np.float32).mean((0, 1)) for rgb in prepared]
        return np.stack([np.stack((np.zeros(3), mean / np.linalg.norm(mean))) for mean in means]).astype(np.float32)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        sums = np.array([[float(name in text.split()) for name in COLOURS] for text in texts], np.float32)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)


class Captioner:
    """Its best caption is grey; the sampled ones name the colours in order. Lists the images that it captions."""

    def __init__(self) -> None:
        self.seen = list[int]()

    def prepare(self, image: Any) -> np.ndarray:
        return np.asarray(image)

    def vision_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([image[0, 0] for image in images])

    def caption_candidates(self, features: np.ndarray, sampling: Sampling, first_image: int) -> list[list[str]]:
        self.seen += [int(each.argmax()) for each in features]
        return [["grey all over", *[f"drawn {list(COLOURS)[i % 3]}" for i in range(sampling.count)]] for _ in features]


def coloured(folder: Path) -> Path:
    """A table of a red, a green and a blue image: right, wrong and no caption, and a question."""
    (folder / "images").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{name}.png")
    table = folder / "table.tsv"
    rows = ["red.png\ta red thing\t", "green.png\ta blue thing\t", "blue.png\tyes\tis it cold?"]
    table.write_text("image\tcaption\tprompt\n" + "".join(f"{row}\n" for row in rows))
    return table


def work(
    captioner: Any = None, *, own: int = 0, keep: int = 2, bad: BadSamples | None = None, **given: Any
) -> FilterOptions:
    """Options of a run with fake models."""
    capfilt = CapFilt(captioner, given.pop("scorer", Colours()), sampling=Sampling(own, 0.9, 0), **given)
    return FilterOptions(lambda stream: capfilt, {"own": own}, keep, 2, BadSamples(0) if bad is None else bad)


def pool(folder: Path) -> CaptionPool:
    (folder / "pool.txt").write_text("one green leaf\nblue as the sea\n\nred red red\n")
    bad = BadSamples(1)
    found = CaptionPool(folder / "pool.txt", Colours(), bad)
    assert list(bad.found) == [f"{folder / 'pool.txt'}, line 3"]
    return found


def test_best_of_all_candidate_captions_stay(tmp_path: Path) -> None:
    table, captioner = coloured(tmp_path), Captioner()
    given = work(captioner, own=3, pool=pool(tmp_path), retrieved=1)
    arguments = (str(table), str(tmp_path / "images"), tmp_path / "out.tsv")
    assert filter_list(*arguments, given) == 3
    kept = {"red": ["a red thing", "drawn red"], "green": ["drawn green", "one green leaf"]}
    kept["blue"] = ["drawn blue", "blue as the sea"]
    rows = [f"{name}.png\t{text}\t" for name, texts in kept.items() for text in texts]
    question = "blue.png\tyes\tis it cold?"
    assert (tmp_path / "out.tsv").read_text().splitlines() == ["image\tcaption\tprompt", *rows, question]
    stored = {line["id"]: line["said"] for line in candidates_of(tmp_path / "out.tsv") if "id" in line}
    assert stored["red.png"]["source"] == str(tmp_path / "images" / "red.png")
    assert stored["red.png"]["candidates"][:2] == [["a red thing", 1.0, "given"], ["drawn red", 1.0, "sampled"]]
    assert [[*each[:1], each[2]] for each in stored["green.png"]["candidates"][1:3]] == [
        ["one green leaf", "pool"],
        ["a blue thing", "given"],
    ]
    assert ["grey all over", 0.0, "best"] in stored["blue.png"]["candidates"]
    assert filter_list(*arguments, work(None, own=3, keep=1, scorer=None)) == 3, "no model is needed to keep fewer"
    rows = [f"{name}.png\t{texts[0]}\t" for name, texts in kept.items()]
    assert (tmp_path / "out.tsv").read_text().splitlines() == ["image\tcaption\tprompt", *rows, question]
    assert captioner.seen == [0, 1, 2], "each image once"
    with pytest.raises(Blip2rtError, match="own was 3.*restore the option, or give another --out"):
        filter_list(*arguments, work())


def candidates_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{out}.candidates.jsonl").read_text().splitlines()]


def test_existing_captions_are_ranked_without_a_captioner(tmp_path: Path) -> None:
    table = coloured(tmp_path)
    with table.open("a") as file:
        file.write("red.png\ta blue thing\t\nred.png\tA  red thing!\t\n")
    assert filter_list(str(table), str(tmp_path / "images"), tmp_path / "out.tsv", work(keep=9)) == 3
    groups = read_data(tmp_path / "out.tsv", tmp_path / "images").by_image()
    assert [s.text for s in groups[0]] == ["a red thing", "a blue thing"]
    assert [s.text for s in groups[2]] == ["yes"]


def test_interrupted_run_resumes(tmp_path: Path) -> None:
    table, captioner = coloured(tmp_path), Captioner()

    class Broken(Colours):
        def images(self, prepared: Sequence[np.ndarray], vision_features: object = None) -> np.ndarray:
            if prepared[0][0, 0].argmax() == 2:
                raise KeyboardInterrupt
            return super().images(prepared)

    arguments = (str(table), str(tmp_path / "images"), tmp_path / "out.tsv")
    with pytest.raises(KeyboardInterrupt):
        filter_list(*arguments, work(captioner, own=1, scorer=Broken()))
    assert captioner.seen == [0, 1, 2] and not (tmp_path / "out.tsv").exists()
    assert filter_list(*arguments, work(captioner, own=1)) == 3
    assert captioner.seen == [0, 1, 2, 2], "two images were done"


def test_shards_are_filtered_to_shards_of_the_same_samples(tmp_path: Path) -> None:
    coloured(tmp_path)
    files = {name: (tmp_path / "images" / f"{name}.png").read_bytes() for name in COLOURS}
    first = {"a/r.png": files["red"], "a/r.txt": "a red thing", "g.png": files["green"], "g.json": '{"caption": "x"}'}
    answer = {"captions": [{"prompt": "is it cold?", "text": "yes"}], "url": "http://blue"}
    write_shard(tmp_path / "in" / "000.tar", first)
    write_shard(tmp_path / "in" / "001.tar", {"b.png": files["blue"], "b.json": json.dumps(answer)})
    out, captioner = tmp_path / "out", Captioner()
    shards = expand_shards(str(tmp_path / "in"))
    assert filter_shards(shards, out, work(captioner, own=3, keep=1)) == 3
    names = [path.name for path in expand_shards(str(out))]
    assert names == ["000.tar", "001.tar"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, *(f"{n}.candidates.jsonl" for n in names)])
    with tarfile.open(out / "000.tar") as tar:
        assert tar.getnames() == ["a/r.png", "a/r.json", "g.png", "g.json"]
        assert tar.extractfile("a/r.png").read() == files["red"]  # type: ignore[union-attr]
    with tarfile.open(out / "001.tar") as tar:
        assert json.load(tar.extractfile("b.json"))["source"] == "http://blue"  # type: ignore[arg-type]
    assert texts_of(out, tmp_path) == [("a red thing",), ("drawn green",), ("drawn blue", "yes")]
    (out / "001.tar").unlink()
    assert filter_shards(shards, out, work(own=3, keep=1, scorer=None)) == 1, "one shard was there"
    assert filter_shards(shards, out, work(own=3, keep=2, scorer=None)) == 3, "other captions stay"
    assert len(texts_of(out, tmp_path)[0]) == 2 and captioner.seen == [0, 1, 2]


def texts_of(out: Path, folder: Path) -> list[tuple[str, ...]]:
    shards = Shards(str(out), folder / "cache")
    return [tuple(sample.text for sample in shards.read(number)[1]) for number in range(sum(shards.counts))]


def test_claimed_shards_are_left_to_others_until_these_end(tmp_path: Path) -> None:
    coloured(tmp_path)
    sample = {"a.png": (tmp_path / "images" / "red.png").read_bytes(), "a.txt": "a red thing"}
    shards = [write_shard(tmp_path / "in" / f"{i}.tar", sample) for i in range(2)]
    (out := tmp_path / "out").mkdir()
    with ThreadPoolExecutor(1) as pool:
        with claim(out / "0.tar"):
            done = pool.submit(filter_shards, shards, out, work(Captioner(), own=1))
            while not (out / "1.tar").exists():
                assert not done.done(), done.result()
                time.sleep(0.01)
            assert not (out / "0.tar").exists()
        assert done.result(60) == 2
    assert len(texts_of(out, tmp_path)) == 2
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")], "nothing is left behind"


def test_folder_needs_no_captions_and_counts_bad_images(tmp_path: Path) -> None:
    coloured(tmp_path)
    folder = tmp_path / "images"
    (folder / "red.txt").write_text("a red text\n")
    (folder / "broken.jpg").write_bytes(b"no image")
    bad = BadSamples(1)
    assert filter_list(str(folder), "", tmp_path / "out.tsv", work(Captioner(), own=2, keep=1, bad=bad)) == 3
    assert (tmp_path / "out.tsv").read_text().splitlines()[1:] == [
        "blue.png\tgrey all over\t",
        "green.png\tdrawn green\t",
        "red.png\ta red text\t",
    ]
    assert list(bad.found) == [str(folder / "broken.jpg")]


@pytest.mark.long(12, "whole exports that caption and rank")
@pytest.mark.parametrize("kind", ["opt", "t5", "bundle"])
def test_models_caption_and_rank(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, model = caption_table(tmp_path, 3), tmp_path / "model"
    more = []
    if kind == "bundle":
        tiny_bundle(model, 3)
    else:
        blip2.generative(model, blip2.TEXT_CONFIGS[kind]())
        more = options(scorer=blip2.retrieval(tmp_path / "retrieval"))
    given = read_data(table, tmp_path / "images")
    arguments = ["capfilt", *options(data=table, images=tmp_path / "images", own=4, keep=3, captioner=model), *more]
    outs = [tmp_path / "one.tsv", tmp_path / "two.tsv"]
    for out, batch in zip(outs, ("1", "3"), strict=True):
        assert prepare.main([*arguments, *options(out=out), "--batch-size", batch]) == 0, capsys.readouterr().err
    found = read_data(outs[0], tmp_path / "images")
    assert [path.name for path in found.paths] == [path.name for path in given.paths]
    assert all(1 <= sum(not s.prompt for s in group) <= 3 for group in found.by_image())
    one, batched = ([each["said"]["candidates"] for each in candidates_of(out) if each.get("id")] for out in outs)
    assert all(image == sorted(image, key=lambda each: -each[1]) for image in one)
    predictor = open_predictor(str(model))
    for number, (path, samples) in enumerate(zip(given.paths, given.by_image(), strict=True)):
        features = predictor.vision_features([path])
        written = predictor.caption_candidates(features, Sampling(4, 0.9, 0), number)[0]
        beams: Any = {} if kind == "bundle" else {"num_beams": 3, "max_new_tokens": 30, "min_new_tokens": 1}
        assert len(written) == 5 and written[0] == predictor.caption([path], **beams)[0]
        expected = distinct([sample.text for sample in samples], written, [])
        assert {text: origin for text, _, origin in one[number]} == expected
        scores = {text: score for text, score, _ in batched[number]}
        assert all(
            abs(scores[sample.text] - dict(each[:2] for each in one[number])[sample.text]) < 1e-3 for sample in samples
        )


def test_best_caption_is_that_of_caption_with_its_pool() -> None:
    predictor, photo = open_predictor(None), Image.open(Path(__file__).parents[3] / "docs" / "photo.jpg")
    width, height = photo.size
    corner = photo.crop((width // 2, height // 2, width, height))  # whose caption the pool changes
    rgb = [predictor.prepare(image) for image in (photo, corner)]
    written = predictor.caption_candidates(predictor.vision_features(rgb), Sampling(1, 0.9, 0), 0)
    best = [str(text) for text in predictor.caption(rgb)]  # type: ignore[arg-type]
    assert [each[0] for each in written] == best
    assert best != predictor.caption(rgb, pool=False), "the pool guides"  # type: ignore


def test_clip_ranks(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    from tests.tiny.training import bert_folder

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert_folder(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    ids = {"eos_token_id": tokenizer.sep_token_id, "bos_token_id": tokenizer.cls_token_id}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 12, **ids}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    coloured(tmp_path)
    scorer = ClipScorer(str(tmp_path / "clip"))
    images = scorer.images([scorer.prepare(tmp_path / "images" / f"{name}.png") for name in ("red", "blue")])
    texts = scorer.texts(["a dog", "a dog runs " * 20])
    assert images.shape == (2, 1, 8) and texts.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, rtol=1e-5)


def test_duplicate_texts_are_dropped() -> None:
    found = distinct(["A dog.", "a  dog", "", "..."], ["A DOG", "a cat", "a cow"], ["a cat", "a hen"])
    assert found == {"A dog.": "given", "a cat": "sampled", "a cow": "sampled", "a hen": "pool"}


def test_capfilt_errors_are_one_line(tmp_path: Path, error_of: Any) -> None:
    table = coloured(tmp_path)
    data = ["capfilt", "--data", str(table), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "o.tsv")]
    assert "give --captioner, or --scorer" in error_of(prepare.main, data)
    with pytest.raises(Blip2rtError, match="does not exist: give a file with one caption per line"):
        CaptionPool(tmp_path / "no.txt", Colours(), BadSamples(0))
    blip2.generative(tmp_path / "opt", blip2.TEXT_CONFIGS["opt"]())
    assert "cannot rank captions: give a bundle, a stage-1 checkpoint or clip:FOLDER as --scorer" in error_of(
        prepare.main, [*data, "--captioner", str(tmp_path / "opt")]
    )
    assert "--top-p is 7.0: give a number above 0" in error_of(prepare.main, [*data, "--scorer", "x", "--top-p", "7"])
    assert "give a whole number from 0 to 100" in error_of(prepare.main, [*data, "--own", "101"])
    assert "is not a CLIP model" in error_of(prepare.main, [*data, "--scorer", f"clip:{tmp_path}"])
