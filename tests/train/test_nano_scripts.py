"""Scripts of recipes/nano: the tables of its data sets, questions about presence, and GPTQ of its encoder."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blip2rt.bundle.manifest import ImageSpec
from blip2rt.image import to_pixels
from blip2rt.modeling.quantize import round_weights
from tests.seeds import new_seed
from tests.tiny.training import caption_table
from tests.train.arguments import options

RECIPES = Path(__file__).parents[2] / "recipes"


def run_script(name: str, *arguments: object, path: Path = RECIPES.parent) -> subprocess.CompletedProcess[str]:
    """Run a script of recipes/nano; `path` comes first on the module path."""
    script = [sys.executable, str(RECIPES / "nano" / name), *map(str, arguments)]
    folders = os.pathsep.join((str(path), str(RECIPES.parent)))
    environment = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}
    return subprocess.run(script, check=False, cwd=RECIPES.parent, env=environment, capture_output=True, text=True)


def test_build_script_names_the_recipes() -> None:
    script = RECIPES / "nano" / "build.sh"
    named = re.findall(r"\$recipes/(\w+)\.yaml", script.read_text())
    assert set(named) == {path.stem for path in script.parent.glob("*.yaml")}
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "missing", "arguments"),
    [
        ("clip.py", "out", ["o"]),
        ("round_encoder.py", "source, --images, --out", ["s", "--images", "i", "--out", "o"]),
    ],
)
def test_errors_are_one_line(name: str, missing: str, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('torch', name='torch')")
    done = run_script(name)
    assert (done.returncode, done.stderr) == (2, f"{name}: error: missing: {missing} (see {name} --help)\n")
    done = run_script(name, *arguments, path=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "torch is not installed: pip install " in done.stderr


@pytest.mark.long(7)
def test_gptq_beats_nearest_rounding(tmp_path: Path) -> None:
    """What is written is on the exporter's grid, and nearer to the exact features than every weight's nearest code."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(new_seed())
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = CLIPVisionModel(CLIPVisionConfig(**size, image_size=32, patch_size=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "exact")
    caption_table(tmp_path, 12)
    flags = options(images=tmp_path / "images", count=12, out=tmp_path / "rounded")
    done = run_script("round_encoder.py", tmp_path / "exact", *flags)
    assert done.returncode == 0, done.stderr
    rounded = CLIPVisionModel.from_pretrained(tmp_path / "rounded").state_dict()
    nearest = copy.deepcopy(model)
    for module in nearest.modules():
        if isinstance(module, torch.nn.Linear):
            round_weights(module, 4, 64)
    again = CLIPVisionModel.from_pretrained(tmp_path / "rounded").eval()
    for name, module in again.named_modules():
        if isinstance(module, torch.nn.Linear):
            round_weights(module, 4, 64)
            assert (module.weight - rounded[f"{name}.weight"]).abs().max() < 1e-3, "it ships as it is"
    clip = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    seen = [str(path) for path in sorted((tmp_path / "images").iterdir())]
    pixels = torch.from_numpy(to_pixels(seen, ImageSpec(32, 32, "bicubic", *clip)))
    with torch.no_grad():
        exact, near, found = (each(pixel_values=pixels).last_hidden_state for each in (model, nearest, again))
    assert (found - exact).square().mean() < (near - exact).square().mean()


def write_set(folder: Path, files: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def test_tables_leak_no_dev_images(tmp_path: Path) -> None:
    captions, asked = "image\tcaption", "image\tquestion\tanswer\tsource"
    write_set(
        tmp_path / "d" / "coco",
        {
            "train.tsv": [captions, "b.webp\tA dog"],
            "dev.tsv": [captions, "c.webp\tA cat"],
            "train-qa.tsv": [asked, "a.webp\tWhat is it?\tDog\tvqa"],
            "dev-qa.tsv": [asked, "c.webp\tIs it?\tyes\tvqa"],
        },
    )
    for name in ("web", "flickr8k"):
        write_set(tmp_path / "d" / name, {"train.tsv": [captions, "x.webp\tA hat"]})
    rows = ["image\tquestion\tanswer", "r.webp\tWhat is here?\ttable_lamp", "r.webp\tAnd there?\tbook, papers"]
    write_set(tmp_path / "d" / "daquar", {"train-qa.tsv": rows})
    done = run_script("tables.py", tmp_path / "d", tmp_path / "out")
    assert done.returncode == 0 and "coco: 2 images, 1 captions, 1 questions" in done.stdout, done.stderr
    assert (
        tmp_path / "out" / "coco.tsv"
    ).read_text() == "image\tcaption\tprompt\na.webp\tdog\twhat is it?\nb.webp\tA dog\t\n"
    assert (tmp_path / "out" / "coco-told.tsv").read_text() == "image\tcaption\tprompt\nb.webp\tA dog\t\n"
    untold = (tmp_path / "out" / "coco-untold.tsv").read_text()
    assert untold == "image\tcaption\tprompt\na.webp\tdog\twhat is it?\n", "these wait for captions"
    assert (tmp_path / "out" / "daquar.tsv").read_text().splitlines()[1:] == ["r.webp\ttable lamp\twhat is here?"]
    dev = (tmp_path / "out" / "coco-dev-qa.tsv").read_text()
    assert dev == "image\tcaption\tprompt\nc.webp\tyes\tis it?\n", "as train.evaluate reads it"
    with (tmp_path / "d" / "coco" / "train.tsv").open("a") as file:
        file.write("c.webp\tA leak\n")
    done = run_script("tables.py", tmp_path / "d", tmp_path / "out")
    assert done.returncode == 2 and "coco has 1 images of its dev split, as c.webp: remove them" in done.stderr


def test_presence_asks_for_what_captions_say(tmp_path: Path) -> None:
    """As many nouns that are there as absent ones; none that a caption suggests, and no number that they dispute."""
    dogs = ["Two dogs play on a couch.", "two brown dogs rest on the sofa", "Animals sit"]
    buses = ["A red bus in traffic", "a bus beside three men", "a bus and four men"]
    images = {"a.webp": dogs, "b.webp": buses}
    rows = [f"{image}\t{caption}\n" for image, captions in images.items() for caption in captions]
    (tmp_path / "t.tsv").write_text("image\tcaption\n" + "".join(rows))
    asked = set()
    for seed in range(5):
        flags = options(data=tmp_path / "t.tsv", out=tmp_path / "o.tsv", seed=seed)
        done = run_script("presence.py", *flags)
        assert done.returncode == 0, done.stderr
        lines = [line.split("\t") for line in (tmp_path / "o.tsv").read_text().splitlines()[1:]]
        answers = [line[1] for line in lines]
        assert answers.count("yes") == answers.count("no") == 4
        asked |= {(image, answer, re.sub(r" in the \w+", "", question)) for image, answer, question, _ in lines}
    assert asked == {
        *(("a.webp", "yes", f"is there a {name}?") for name in ("dog", "couch")),
        *(("a.webp", "no", f"is there a {name}?") for name in ("bus", "man", "person")),
        *(("b.webp", "yes", f"is there a {name}?") for name in ("bus", "man", "person")),
        *(("b.webp", "no", f"is there a {name}?") for name in ("dog", "couch")),
        ("a.webp", "two", "how many dogs are there?"),
    }


def test_presence_joins_tables_below_a_folder(tmp_path: Path) -> None:
    told = "image\tcaption\n" + "".join(f"{i}.webp\t{text}\n" for i, text in enumerate(["a dog", "a bus", "a cat"]))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dev.tsv").write_text(told)
    flags = [*options(out=tmp_path / "o.tsv", root=tmp_path, limit=2), "--captions", "--data"]
    done = run_script("presence.py", *flags, tmp_path / "one" / "dev.tsv", tmp_path / "two" / "dev.tsv")
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in (tmp_path / "o.tsv").read_text().splitlines()[1:]]
    assert {row[0].rsplit("/", 1)[0] for row in rows} == {"one/images", "two/images"}
    assert len({row[0] for row in rows}) == 4 and sum(not row[2] for row in rows) == 4
