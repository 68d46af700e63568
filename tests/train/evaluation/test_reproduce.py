"""recipes/paper/reproduce.sh: its commands evaluate tiny models on every benchmark, and the table shows the totals."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from blip2rt_train import evaluate
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2

from .official import official_formats

ROOT = Path(__file__).parents[3]
LISTS = {
    "dataset_coco.json": "karpathy.json",
    "dataset_flickr30k.json": "karpathy.json",
    "nocaps_val_4500_captions.json": "nocaps.json",
    "v2_OpenEnded_mscoco_val2014_questions.json": "questions.json",
    "v2_mscoco_val2014_annotations.json": "annotations.json",
    "OpenEnded_mscoco_val2014_questions.json": "questions.json",
    "testdev_balanced_questions.json": "gqa.json",
}

pytestmark = pytest.mark.long(15, "six benchmarks")


def test_published_evaluations_fill_the_table(tmp_path: Path) -> None:
    """`blip2rt-train` writes its arguments down, so that one process evaluates; the next run resumes."""
    pytest.importorskip("pycocoevalcap")
    data, models, page = tmp_path / "data", tmp_path / "models", tmp_path / "page.md"
    data.mkdir()
    official_formats(data, seed_of(__name__))
    for folder in ("val2014", "nocaps", "gqa", "flickr30k-images"):
        (data / folder).symlink_to("images")
    for name, ours in LISTS.items():
        shutil.copy(data / ours, data / name)
    for name in ("blip2-flan-t5-xl", "blip2-flan-t5-xl-coco"):
        tiny_blip2.generative(models / name, tiny_blip2.TEXT_CONFIGS["t5"]())
    tiny_blip2.retrieval(models / "blip2-itm-vit-g-coco")
    page.write_text((ROOT / "docs" / "evaluation.md").read_text())
    command = tmp_path / "blip2rt-train"
    command.write_text(f'#!/usr/bin/env bash\nprintf "%q " "$@" >> {tmp_path}/log; echo >> {tmp_path}/log\nexit 3\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [ROOT / "recipes" / "paper" / "reproduce.sh", models, data, tmp_path / "out", page]
    for _ in range(6):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        asked = shlex.split((tmp_path / "log").read_text().splitlines()[-1])
        assert evaluate.main(asked[1:]) == 0
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and len((tmp_path / "log").read_text().splitlines()) == 6
    assert done.stderr.startswith("reproduce.sh: missing: ") and done.stderr.count("\n") == 1
    assert "mscoco_val2014_annotations.json, " in done.stderr and "blip2-opt-2.7b, " in done.stderr
    rows = [line.split("|")[1:-1] for line in page.read_text().splitlines() if line.count("|") == 5]
    filled = {(row[0].strip(), row[1].strip()): row[3].strip() for row in rows if row[3].strip()}
    assert len(filled) == 2 + 6, "the head among them, and OK-VQA has no annotations"
    total = json.loads((tmp_path / "out" / "COCO-blip2-flan-t5-xl-coco.json").read_text())
    assert filled["COCO", "blip2-flan-t5-xl-coco"] == f"{total['cider']:.1f} / {total['bleu4']:.1f}"
    assert total["min_new_tokens"] == 8 and total["num_beams"] == 5
    assert all(filled[name, "blip2-itm-vit-g-coco"].count("/") == 5 for name in ("COCO-retrieval", "Flickr30k"))
    same = (models, data, tmp_path / "out")
    assert not [word for word in same if str(word) in page.read_text()]
