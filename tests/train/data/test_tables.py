"""Several tables with cached features: drawing by weight, exact resume, errors."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip2rt.modeling.vision import VisionConfig
from blip2rt_train import stage1
from blip2rt_train.data import features
from blip2rt_train.data.loaders import LoaderSettings, TableLoader, open_loader
from blip2rt_train.settings import BatchSettings, DataSettings
from tests.seeds import new_seed
from tests.tiny.training import caption_table, tiny_settings
from tests.train.runs import assert_equal, interrupt_and_resume, weights


def tables(folder: Path) -> list[dict[str, object]]:
    """Write tables of 6 and 5 images; in the second, one image has only a question, and one has a question too."""
    found = []
    for name, images, weight in (("one", 6, 3.0), ("two", 5, 1.0)):
        table = caption_table(folder / name, images)
        found.append({"path": str(table), "images": str(folder / name / "images"), "weight": weight})
    lines = Path(str(found[1]["path"])).read_text().splitlines()
    questions = ["4.jpg\tyes\tis it?", "3.jpg\tno\tis it not?"]
    kept = [line if i == 0 else f"{line}\t" for i, line in enumerate(lines) if not line.startswith("4.jpg")]
    Path(str(found[1]["path"])).write_text("\n".join([f"{kept[0]}\tprompt", *kept[1:], *questions]) + "\n")
    return found


def loader(folder: Path, by_caption: bool, texts: int) -> TableLoader:
    data = DataSettings(train_tables=tuple(tables(folder)), features=str(folder / "features"), views=2)
    vision = VisionConfig("timm:test_efficientnet", height=64, width=64, positions=4, features=256)
    batch = BatchSettings(batch_size=40, seed=5)
    found = open_loader(LoaderSettings(data, batch, vision, texts, by_caption), str(folder / "out"))
    assert isinstance(found, TableLoader)
    return found


def test_tables_are_drawn_by_weight_with_their_own_features(tmp_path: Path) -> None:
    of_tables = loader(tmp_path, by_caption=False, texts=3)
    steps = of_tables.steps(7)
    drawn, orders = Counter[int](), set()
    for expected in range(7, 17):
        step, [rows] = next(steps)
        assert step == expected and rows.vision_features is not None
        drawn.update(rows.image_ids.tolist())
        orders.add(tuple(rows.image_ids.tolist()))
        for image, seen, group in zip(rows.image_ids.tolist(), rows.vision_features, rows.groups, strict=True):
            table, inside = (0, image) if image < 6 else (1, image - 6)
            views = [of_tables.sources[table].get([inside], [view])[0] for view in range(2)]
            assert any(torch.equal(seen, view) for view in views)
            assert set(group) <= set(of_tables.groups[image]) and 0 < len(group) <= 3
    assert set(drawn) == set(range(11)) and len(orders) == 10
    assert 0.65 < sum(drawn[i] for i in range(6)) / drawn.total() < 0.85
    again = next(of_tables.steps(16))[1][0]
    assert torch.equal(again.image_ids, rows.image_ids) and again.groups == rows.groups


def test_stage1_draws_captions_only(tmp_path: Path) -> None:
    of_tables = loader(tmp_path, by_caption=True, texts=1)
    seen = set()
    for _, [rows] in (next(of_tables.steps(step)) for step in range(6)):
        assert all(len(group) == 1 and not group[0].prompt for group in rows.groups)
        seen |= set(rows.image_ids.tolist())
    assert seen == set(range(10)), "the image of a question alone is left out"


@pytest.mark.long(9, "three trainings, compared bit for bit")
def test_training_on_tables_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings = [*tiny_settings(tmp_path), "--train_table", "", "--train_tables", *map(json.dumps, tables(tmp_path))]
    assert stage1.main([*settings, "--out", str(tmp_path / "whole")]) == 0
    interrupt_and_resume("stage1", settings, tmp_path / "two")
    assert_equal(weights(tmp_path / "two"), weights(tmp_path / "whole"))


def test_mixed_tables_report_mistakes(tmp_path: Path, error_of: Any) -> None:
    settings = [*tiny_settings(tmp_path), "--out", str(tmp_path / "out")]
    given = json.dumps({"path": str(tmp_path / "table.tsv"), "imagse": "x"})
    for more, words in (
        ([], "train_table and train_tables are both given"),
        (["--train_table", ""], "train_tables, entry 1: unknown 'imagse': choose images"),
        (["--train_table", "", "--train_data", given], "train_data and train_tables are both given"),
    ):
        assert words in error_of(stage1.main, [*settings, "--train_tables", given, *more])


def test_replaced_images_are_encoded_again(tmp_path: Path) -> None:
    rng, folders = np.random.default_rng(new_seed()), [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "frame.bmp")
    vision = VisionConfig("timm:test_efficientnet", height=64, width=64, positions=4, features=256)
    keys = [features.cache_key([folder / "frame.bmp"], vision) for folder in folders]
    assert keys[0] != keys[1] and keys[0] == features.cache_key([folders[0] / "frame.bmp"], vision)
    shutil.copyfile(folders[1] / "frame.bmp", folders[0] / "frame.bmp")
    assert features.cache_key([folders[0] / "frame.bmp"], vision) != keys[0]


@pytest.mark.parametrize("weights", ["encoder.pth", "folder", "hf"])
def test_replaced_encoder_encodes_again(weights: str, tmp_path: Path) -> None:
    image = tmp_path / "image.jpg"
    image.write_bytes(b"")
    file = tmp_path / weights if weights == "encoder.pth" else tmp_path / weights / "model.safetensors"
    file.parent.mkdir(exist_ok=True)
    vision = VisionConfig("timm:test_efficientnet", weights=str(tmp_path / weights))
    if weights == "hf":
        vision = VisionConfig(f"hf:{tmp_path / weights}")
    file.write_bytes(b"one")
    before = features.cache_key([image], vision)
    assert features.cache_key([image], vision) == before
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000))
    assert features.cache_key([image], vision) != before
    assert features.cache_key([image], VisionConfig("timm:test_efficientnet", weights="pretrained")) != before
