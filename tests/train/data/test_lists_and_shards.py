"""Lists of every format, shards, the order of samples, bad samples, and exact resume on `train_data`."""

import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.vision import VisionConfig
from blip2rt_train import prepare, stage1
from blip2rt_train.data.readers import read_data
from blip2rt_train.data.samples import BadSamples, Dataset, Sample, draw_texts, first_answers
from blip2rt_train.data.sampling import Mixture, ShuffledOrder
from blip2rt_train.data.shards import Shards, expand_shards
from blip2rt_train.data.streaming import ImageBatch, SampleReader, load_batches, open_sources
from blip2rt_train.data.transforms import eval_transform, to_pixels, train_transform
from tests.seeds import new_seed
from tests.tiny.training import caption_table, tiny_settings
from tests.train.runs import assert_equal, interrupt_and_resume, weights
from tests.train.shard_files import write_shard

# more workers than cores, where cores are few
pytestmark = [
    pytest.mark.long(14, "trainings on each kind of data resume bit for bit"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]

CAPTIONS = {"0.jpg": ["a dog runs", "the dog"], "1.jpg": ["a cat sits"], "2.jpg": ["snow"]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    caption_table(tmp_path, 3)
    return tmp_path / "images"


def jpeg(colour: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (colour, 90, 30)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", "", ["empty.jsonl", "no rows"]),
        ("other.json", "{}", ["COCO", "annotations"]),
        ("broken.json", "{", ["is not JSON", ".jsonl"]),
        ("columns.csv", "a,b\n1,2\n", ["column for the image", "file_name"]),
        ("data.xml", "", [".tsv", "shards"]),
    ],
)
def test_unusable_lists_are_one_line(images: Path, name: str, content: str, words: list[str]) -> None:
    path = images.parent / name
    path.write_text(content)
    with pytest.raises(Blip2rtError) as error:
        read_data(path, images, BadSamples(10))
    assert all(word in str(error.value) for word in words), error.value


def test_img2dataset_and_webdataset_shards_are_read(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "s" / "00000.tar", {"a/1.jpg": jpeg(1), "a/1.txt": "one\ntwo\n", "a/1.json": '{"caption": "json"}'}
    )
    write_shard(tmp_path / "s" / "00001.tar", {"2.txt": "two", "2.png": jpeg(2), "3.jpg": jpeg(3), "4.txt": "no image"})
    shards = Shards(str(tmp_path / "s" / "{00000..00001}.tar"), tmp_path / "cache")
    assert shards.counts == [1, 1]
    assert shards.read(0) == (jpeg(1), [Sample(0, "json")]) and shards.read(1) == (jpeg(2), [Sample(0, "two")])
    assert shards.name(1).endswith("00001.tar#0")
    assert len(list((tmp_path / "s").glob("*.index.npz"))) == 2 and not (tmp_path / "cache").exists()
    with pytest.raises(Blip2rtError, match="1 of 3 shards"):
        expand_shards(str(tmp_path / "s" / "{00000..00002}.tar"))


def test_truncated_shard_keeps_complete_samples(tmp_path: Path) -> None:
    samples = {f"{i}.{kind}": jpeg(i) if kind == "jpg" else "text" for i in range(4) for kind in ("jpg", "txt")}
    path = write_shard(tmp_path / "0.tar", samples)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert 0 < Shards(str(path), tmp_path / "cache").counts[0] < 4


def test_prepare_writes_shards_with_all_texts(images: Path) -> None:
    out = images.parent / "shards"
    (images / "bad.jpg").write_bytes(b"no image")
    path = images.parent / "list.csv"
    rows = "".join(f'"{text}",{name}\n' for name, texts in CAPTIONS.items() for text in texts)
    path.write_text(f"caption,file_name\n{rows}broken,bad.jpg\n")
    arguments = ["shards", "--data", str(path), "--images", str(images), "--out", str(out), "--per_shard", "2"]
    assert prepare.main(arguments) == 0
    shards = Shards(str(out), images.parent / "cache")
    assert shards.counts == [2, 1]
    assert sorted([s.text for s in shards.read(i)[1]] for i in range(3)) == sorted(CAPTIONS.values())
    assert prepare.main(arguments) == 2, "it never writes over a folder"
    assert prepare.main(["index", "--data", str(out), "--cache", str(images.parent / "cache")]) == 0


def test_epoch_has_every_sample_once_from_few_shards_at_a_time() -> None:
    rng = random.Random(new_seed())
    counts = [rng.randint(0, 9) for _ in range(60)]
    order = ShuffledOrder(counts, (rng.randrange(100), 0))
    for epoch in range(2):
        seen = [order[epoch * order.total + i] for i in range(order.total)]
        assert sorted(seen) == list(range(order.total))
        of_shard = np.searchsorted(np.cumsum(counts), seen, "right")
        assert len(set(of_shard[: order.total // 8].tolist())) <= 32
    assert [order[i] for i in range(20)] != [order[order.total + i] for i in range(20)]
    assert [ShuffledOrder(counts, order.seed)[i] for i in range(30)] == [order[i] for i in range(30)]


def test_mixture_keeps_weights_and_uses_positions_once() -> None:
    seed = random.randrange(1000)
    mixture = Mixture([3.0, 1.0], 16, seed)
    rows = [row for step in range(1500) for row in mixture.batch(step)]
    for source in (0, 1):
        positions = sorted(position for s, position in rows if s == source)
        assert positions == list(range(len(positions)))
    assert Counter(source for source, _ in rows)[0] / len(rows) == pytest.approx(0.75, abs=0.02)
    assert Mixture([3.0, 1.0], 16, seed).batch(1300) == mixture.batch(1300), "any step, without those before"


def reader(tmp_path: Path, broken: bool = False) -> SampleReader:
    samples: dict[str, bytes | str] = {}
    for i in range(12):
        samples[f"{i}.jpg"] = b"no image" if broken and i % 4 == 0 else jpeg(20 * i)
        samples[f"{i}.txt"] = f"text {i}\nother {i}"
    write_shard(tmp_path / "data" / "0.tar", samples)
    config = VisionConfig(height=8, width=8)
    sources, _ = open_sources(({"path": str(tmp_path / "data")},), tmp_path / "cache", BadSamples(0))
    return SampleReader(sources, 5, train_transform(config))


def stream(reader: SampleReader, start: int, workers: int, bad: BadSamples, ranks: int = 1) -> list[ImageBatch]:
    """Return three steps of 4 rows, rank by rank."""

    def part(rank: int) -> Iterator[tuple[int, list[ImageBatch]]]:
        each = 4 // ranks
        mixture = Mixture([1.0], 4, 5)
        return load_batches(reader, mixture, start, lambda rows: [rows[rank * each :][:each]], workers, bad)

    parts = [part(rank) for rank in range(ranks)]
    return [images for _ in range(3) for part in parts for images in next(part)[1]]


def test_batches_depend_only_on_the_step(tmp_path: Path) -> None:
    data = reader(tmp_path)
    whole = [stream(data, start, 0, BadSamples(0)) for start in (0, 2)]
    torch.testing.assert_close(whole[0][2].pixels, whole[1][0].pixels, rtol=0, atol=0)
    assert whole[0][2].groups == whole[1][0].groups
    by_workers = stream(data, 0, 2, BadSamples(0))
    by_ranks = stream(data, 0, 0, BadSamples(0), ranks=2)
    for step in range(3):
        halves = by_ranks[2 * step : 2 * step + 2]
        for other in (by_workers[step].pixels, torch.cat([half.pixels for half in halves])):
            torch.testing.assert_close(whole[0][step].pixels, other, rtol=0, atol=0)
    ids = torch.cat([images.image_ids for images in whole[0]])
    assert sorted(ids.tolist()) == list(range(12)), "one epoch"
    data.texts = 1
    assert [step.groups for step in stream(data, 0, 0, BadSamples(0))] == [
        [group[:1] for group in step.groups] for step in whole[0]
    ]


def test_bad_samples_are_replaced_reported_and_limited(tmp_path: Path) -> None:
    data = reader(tmp_path, broken=True)
    bad = BadSamples(3, tmp_path / "bad.tsv")
    images = stream(data, 0, 2, bad)
    assert sum(len(part.groups) for part in images) == 12
    assert len(bad.found) == 3 and all("0.tar#" in name for name in bad.found)
    assert (tmp_path / "bad.tsv").read_text().count("\n") == 3
    with pytest.raises(Blip2rtError, match="max_bad is 2"):
        stream(data, 0, 0, BadSamples(2))


def test_wrong_sources_are_named_together(tmp_path: Path) -> None:
    entries = ({"path": "a", "wieght": 1}, {"images": "b"}, {"path": "c", "weight": 0})
    with pytest.raises(OptionError) as error:
        open_sources(entries, tmp_path, BadSamples(0))
    assert all(word in str(error.value) for word in ("'wieght'", "choose weight", "entry 2", "weight is 0"))


def test_transforms_match_runtime_and_paper() -> None:
    config = VisionConfig(height=32, width=32, mean=(0.48, 0.45, 0.4), std=(0.26, 0.26, 0.27))
    picture = Image.fromarray(np.random.default_rng(new_seed()).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    torch.testing.assert_close(eval_transform(config)(picture), to_pixels(picture, config))
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    shown = [train_transform(config)(ramp)[0, 16] * 0.26 + 0.48 for _ in range(100)]
    rises = [bool(row[-1] > row[0]) for row in shown]
    assert 20 < sum(rises) < 80, "half of them are mirrored"
    widths = [float((row[-1] - row[0]).abs()) for row in shown]
    assert min(widths) > 0.3 and max(widths) > 0.8 and np.std(widths) > 0.05, "crops of half to all of the image"


def test_training_on_sources_resumes_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_settings(tmp_path)
    out = tmp_path / "shards"
    arguments = ["--data", str(tmp_path / "table.tsv"), "--images", str(tmp_path / "images"), "--out", str(out)]
    assert prepare.main(["shards", *arguments, "--per_shard", "3"]) == 0
    data = [
        {"path": str(out), "weight": 2},
        {"path": str(tmp_path / "table.tsv"), "images": str(tmp_path / "images"), "weight": 1},
    ]
    settings = [*settings, "--train-table", "", "--train_data", *map(json.dumps, data), "--workers", "1"]
    assert stage1.main([*settings, "--out", str(tmp_path / "whole")]) == 0
    interrupt_and_resume("stage1", settings, tmp_path / "two")
    assert_equal(weights(tmp_path / "two"), weights(tmp_path / "whole"))


def test_answers_are_drawn_by_frequency(tmp_path: Path) -> None:
    """VQAv2's pair of files, and lists of questions with answers in any form."""
    (tmp_path / "train2014").mkdir()
    name = "train2014/COCO_train2014_000000000042.jpg"
    (tmp_path / name).write_bytes(jpeg())
    ten = ["yes"] * 7 + ["no"] * 3
    answers = [{"question_id": 1, "image_id": 42, "answers": [{"answer": a, "answer_confidence": "yes"} for a in ten]}]
    files = {
        "v2_mscoco_train2014_annotations.json": {"data_subtype": "train2014", "annotations": answers},
        "v2_OpenEnded_mscoco_train2014_questions.json": {
            "questions": [{"question_id": 1, "image_id": 42, "question": "Is it?"}]
        },
        "list.json": [{"image": name, "question": "Is it?", "answer": ten}],
    }
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"image": name, "question": "Is it?", "answers": {"yes": 7, "no": 3}}) + "\n"
    )
    for file in ("v2_mscoco_train2014_annotations.json", "list.json", "lines.jsonl"):
        data = read_data(tmp_path / file, tmp_path)
        assert data.samples == [Sample(0, "yes", "Is it?", 7), Sample(0, "no", "Is it?", 3)], file
    samples = [*data.samples, Sample(0, "a dog")]
    assert first_answers(samples) == [samples[0], samples[2]]
    drawn = [draw_texts(samples, np.random.default_rng(i)) for i in range(2000)]
    assert all(sorted(bool(s.prompt) for s in texts) == [False, True] for texts in drawn)
    said = [next(s.text for s in texts if s.prompt) for texts in drawn]
    assert said.count("yes") / len(said) == pytest.approx(0.7, abs=0.05)
    out = prepare.write_shards(Dataset(data.paths, samples), tmp_path / "shards", 9, BadSamples(0))
    assert sorted(Shards(str(out[0].parent), tmp_path).read(0)[1], key=str) == sorted(samples, key=str)
    for name in ("mscoco_train2014_annotations.json", "OpenEnded_mscoco_train2014_questions.json"):  # OK-VQA's
        (tmp_path / name).write_text("\ufeff" + (tmp_path / f"v2_{name}").read_text(), encoding="utf-8")
    assert read_data(tmp_path / "mscoco_train2014_annotations.json", tmp_path).samples == data.samples
    (tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").unlink()
    with pytest.raises(Blip2rtError, match="v2_OpenEnded_mscoco_train2014_questions.json"):
        read_data(tmp_path / "v2_mscoco_train2014_annotations.json", tmp_path)


def test_bad_samples_count_across_resumes(tmp_path: Path) -> None:
    BadSamples(9, tmp_path / "bad.tsv").add("a  b.jpg", "no\nimage")
    bad = BadSamples(1, tmp_path / "bad.tsv", resume=True)
    bad.add("a b.jpg", "again")
    with pytest.raises(Blip2rtError, match="2 samples are unusable"):
        bad.add("c.jpg", "no image")


def two_images(folder: Path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    return folder


def test_by_caption_skips_answers(tmp_path: Path) -> None:
    """Stage 1 reads all data this way."""
    rows = [
        {"image": "a.png", "caption": "a dog"},
        {"image": "a.png", "question": "what?", "answer": "brown"},
        {"image": "b.png", "question": "who?", "answer": "a cat"},
    ]
    (two_images(tmp_path) / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"path": str(tmp_path / "t.jsonl"), "images": str(tmp_path)}
    sources, _ = open_sources((entry,), tmp_path, BadSamples(0), by_caption=True)
    assert sources[0].counts == [1]
    reader = SampleReader(sources, 0, eval_transform(VisionConfig(height=8, width=8)), by_caption=True)
    rows_read = reader[[(0, 0)]]
    assert isinstance(rows_read, ImageBatch) and [[s.text for s in group] for group in rows_read.groups] == [["a dog"]]
    both, _ = open_sources((entry,), tmp_path, BadSamples(0))
    assert both[0].counts == [2]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(Blip2rtError, match="has no caption, and only captions are read"):
        open_sources((entry,), tmp_path, BadSamples(0), by_caption=True)
