"""Recipes and dry runs: the paper's sizes on tensors without storage, mistakes named together before any step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from blip2rt.modeling.checkpoint import CONFIG
from blip2rt_train import stage1, stage2
from blip2rt_train.cli import main as train
from blip2rt_train.early_checks import open_settings
from blip2rt_train.extras import self_critical
from blip2rt_train.plan import count_parameters, memory, rates, step_flops, trained
from blip2rt_train.recipe import parse
from blip2rt_train.settings import MachineSettings
from tests.train.arguments import options, sizes, without

from ..tiny.training import NANO_STAGE2, encoder_weights, llm_folder, t5_folder, tiny_settings

pytestmark = pytest.mark.long(30, "each recipe starts a training")

RECIPES = Path(__file__).parents[2] / "recipes"

# The paper's table 2: trainable parameters in millions (XXL only with ViT-g, OPT-6.7B only with ViT-g).
PAPER = sizes("vit-l-opt-2.7b=104 vit-g-opt-2.7b=107 vit-g-opt-6.7b=108")
PAPER |= sizes("vit-l-flan-t5-xl=103 vit-g-flan-t5-xl=107 vit-g-flan-t5-xxl=108")

_OPT = {"vocab_size": 50272, "num_hidden_layers": 32, "num_attention_heads": 32}
_T5 = {"vocab_size": 32128, "d_kv": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
_T5["tie_word_embeddings"] = False
PARTS = {
    "bert": transformers.BertConfig(),
    "opt-2.7b": transformers.OPTConfig(hidden_size=2560, ffn_dim=10240, word_embed_proj_dim=2560, **_OPT),
    "opt-6.7b": transformers.OPTConfig(hidden_size=4096, ffn_dim=16384, word_embed_proj_dim=4096, **_OPT),
    "flan-t5-xl": transformers.T5Config(d_model=2048, d_ff=5120, num_heads=32, **_T5),
    "flan-t5-xxl": transformers.T5Config(d_model=4096, d_ff=10240, num_heads=64, **_T5),
}


@pytest.fixture(scope="module")
def geometries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs, and nothing else, of what the paper's recipes name."""
    folder = tmp_path_factory.mktemp("geometries")
    for name, config in PARTS.items():
        config.save_pretrained(folder / name)
    for size in "gl":
        recipe = str(RECIPES / "paper" / f"stage1-vit-{size}.yaml")
        settings = parse(stage1.Stage1Settings, ["--recipe", recipe, "--qformer_init", str(folder / "bert")], "")
        (folder / f"stage1-{size}").mkdir()
        (folder / f"stage1-{size}" / CONFIG).write_text(json.dumps(stage1.starting_point(settings).config.to_json()))
    for pair in ("g-opt-2.7b", "g-opt-6.7b", "g-flan-t5-xl"):
        recipe, llm = str(RECIPES / "paper" / f"stage2-vit-{pair}.yaml"), str(folder / pair[2:])
        arguments = ["--recipe", recipe, "--llm_source", llm, "--stage1", str(folder / "stage1-g")]
        (folder / f"stage2-{pair}").mkdir()
        whole = stage2.starting_point(parse(stage2.Stage2Settings, arguments, "")).config
        (folder / f"stage2-{pair}" / CONFIG).write_text(json.dumps(whole.to_json()))
    return folder


@pytest.mark.parametrize(("size", "count"), [("g", 186_705_470), ("l", 183_165_758)])
def test_stage1_parameters_match_the_reference(geometries: Path, size: str, count: int) -> None:
    """The paper says 188 M; docs/training.md counts what there is."""
    recipe = RECIPES / "paper" / f"stage1-vit-{size}.yaml"
    settings = parse(stage1.Stage1Settings, ["--recipe", str(recipe), "--qformer_init", str(geometries / "bert")], "")
    point = stage1.starting_point(settings)
    config, counts = point.config, count_parameters(point)
    assert trained(counts) == count
    beside = 768 * 768 + 768 + 2 * 768 + 30523 + 1  # of ITG the head behind the word embeddings; the temperature
    assert counts["lm_head"] + counts["temperature"] == beside
    assert trained(counts) - beside == hugging_faces_count(config.vision.features)
    assert counts["vision"] / 1e6 == pytest.approx(986 if size == "g" else 291, abs=1)
    assert config.vision.positions == 257 and settings.loop.batch.batch_size == (1680 if size == "g" else 2320)
    plan = stage1.plan(settings)
    need = sum(memory(plan, counts, 16).values())
    assert 10e9 < need < 40e9, "the paper's GPUs have 40 GB"
    if size == "g":
        assert (round(step_flops(plan, counts) / 1680e9), round(need / 1e9)) == (664, 18), "as docs/scale.md says"


def hugging_faces_count(vision_width: int) -> int:
    """Parameters outside of the image encoder that transformers' model of ITC and ITM has; it leaves ITG's out."""
    config = transformers.Blip2Config(
        vision_config={"hidden_size": vision_width},
        qformer_config={"vocab_size": 30523, "use_qformer_text_input": True},
    )
    with torch.device("meta"):
        model = transformers.Blip2ForImageTextRetrieval(config)
    inside = ("vision_model.embeddings", "vision_model.encoder")
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(inside))


@pytest.mark.parametrize(
    "pair", sorted(path.stem.removeprefix("stage2-") for path in (RECIPES / "paper").glob("stage2*"))
)
def test_stage2_parameters_match_the_paper(geometries: Path, pair: str) -> None:
    size, llm = pair[4], pair[6:]
    arguments = ["--recipe", str(RECIPES / "paper" / f"stage2-{pair}.yaml"), "--llm_source", str(geometries / llm)]
    settings = parse(stage2.Stage2Settings, [*arguments, "--stage1", str(geometries / f"stage1-{size}")], "")
    plan = stage2.plan(settings)
    config, counts = plan.config, count_parameters(plan.point)
    assert trained(counts) / 1e6 == pytest.approx(PAPER.get(pair, 106), abs=1 if pair in PAPER else 3)
    whole, sharded = (
        memory(replace(plan, loop=replace(plan.loop, machine=MachineSettings(shard=shard))), counts, 16)
        for shard in ("none", "all")
    )
    assert sharded["frozen parts"] < whole["frozen parts"] / 4 and sum(sharded.values()) < sum(whole.values())
    if llm == "opt-2.7b":
        assert counts["llm"] / 1e6 == pytest.approx(2652, abs=2)
    optimizer, batch_size = settings.loop.optimizer, settings.loop.batch.batch_size
    assert (optimizer.lr, optimizer.min_lr, optimizer.warmup, optimizer.steps) == (1e-4, 5e-5, 2000, 80000)
    assert batch_size == (1920 if "opt" in llm else 1520)
    assert config.llm is not None and config.llm.add_special_tokens == ("t5" in llm)
    assert batch_size % 16 == 0


# Tables 3 to 5 and 7 to 9: millions of parameters that learn, pixels, batch, rate, decay from layer to layer.
FINETUNES = {
    "caption-coco-opt-2.7b": (1100, 364, 256, 1e-5, 1.0),
    "caption-coco-opt-6.7b": (1100, 364, 256, 1e-5, 0.95),
    "caption-coco-flan-t5-xl": (1100, 364, 256, 1e-5, 1.0),
    "vqa-opt-2.7b": (1200, 490, 128, 1e-5, 0.95),
    "vqa-opt-6.7b": (1200, 490, 128, 1e-5, 0.9),
    "vqa-flan-t5-xl": (1200, 490, 128, 1e-5, 0.95),
    "retrieval-coco-vit-g": (1200, 364, 224, 1e-5, 0.95),
    "retrieval-coco-vit-l": (474, 364, 224, 5e-6, 1.0),
}


@pytest.mark.parametrize("name", FINETUNES)
def test_finetune_parameters_match_the_paper(geometries: Path, name: str) -> None:
    millions, pixels, batch, rate, decay = FINETUNES[name]
    task, pair = name.split("-", 1)
    module, cls = (stage1, stage1.Stage1Settings) if task == "retrieval" else (stage2, stage2.Stage2Settings)
    start = f"stage1-{pair[-1]}" if task == "retrieval" else f"stage2-g-{pair.removeprefix('coco-')}"
    arguments = ["--recipe", str(RECIPES / "paper" / f"{name}.yaml"), "--start", str(geometries / start)]
    if task == "vqa":
        arguments += ["--stage1", str(geometries / "stage1-g")]
    settings: Any = parse(cls, arguments, "")
    point = module.starting_point(settings)
    config, counts = point.config, count_parameters(point, settings.vision.train_vision)
    assert trained(counts) / 1e6 == pytest.approx(millions, abs=1 if millions == 474 else 50)
    assert "vision" not in counts and config.vision_trained
    assert (config.vision.height, config.vision.positions) == (pixels, 1 + (pixels // 14) ** 2)
    optimizer = settings.loop.optimizer
    assert settings.loop.batch.batch_size == batch
    assert (optimizer.lr, optimizer.warmup, optimizer.min_lr) == (rate, 1000, 0)
    assert optimizer.beta2 == (0.98 if name.endswith("vit-l") else 0.999)
    samples = 658_111 if task == "vqa" else 566_747
    assert optimizer.steps == 5 * samples // batch, "five epochs"
    assert config.question_input == (task == "vqa") and (config.llm is None) == (task == "retrieval")
    if config.llm is not None:
        assert config.llm.caption_prompt == ("a photo of" if task == "caption" else "")
        assert config.llm.ask_prompt == "Question: {} Answer:" or task == "caption"
    lines = rates(module.plan(settings), counts)
    peaks = [float(line.split()[0]) for line in lines]
    layers = 23 if name.endswith("vit-l") else 39
    if decay == 1:
        assert len(peaks) == 1
    else:
        assert len(peaks) == layers + 2 and lines[0].endswith("encoder, layer 0")
        assert peaks[0] == pytest.approx(rate * decay ** (layers + 1), rel=0.01) and peaks[-1] == rate


NANO_RECIPES = {
    "stage1": stage1.Stage1Settings,
    "retrieval": stage1.Stage1Settings,
    "stage2": stage2.Stage2Settings,
    "captions": stage2.Stage2Settings,
    "rewarded": self_critical.SelfCriticalSettings,
}


@pytest.mark.parametrize("path", sorted((RECIPES / "nano").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_nano_parse(path: Path) -> None:
    settings: Any = parse(NANO_RECIPES[path.stem], ["--recipe", str(path), "--train_table", "x.tsv"], "")
    text = getattr(getattr(settings, "stage2", settings), "text", None)
    assert text is None or text.clean_answers, "nano learns cleaned answers"
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(comments) == 1 and "python" not in comments[0]


def test_recipes_that_ship_are_listed_found_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(["recipes"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    recipes = {path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml")}
    assert listed == recipes | {"nano/clip.py"}
    assert train(["recipes", "finetune/nano", "--out", "own.yaml"]) == 0
    copied, shipped = (
        parse(stage2.Stage2Settings, ["--recipe", name, "--train-table", "t"], "")
        for name in ("own.yaml", "finetune/nano")
    )
    assert copied == shipped and shipped.loop.batch.batch_size == 8
    assert train(["recipes", "finetune/nano", "--out", "own.yaml"]) == 2
    assert "own.yaml already exists" in capsys.readouterr().err


def test_faults_of_all_recipes_and_flags_are_named_together(tmp_path: Path, error_of: Any) -> None:
    (tmp_path / "base.yaml").write_text("stepps: 3\nlr: fast\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\nseed: 1.5\nwarmup: 0\n")
    error = error_of(stage1.main, ["--recipe", tmp_path / "own.yaml", "--out", "o", "--sources", "a", "--clip", "-1"])
    for words in ("'stepps': did you mean 'steps'", "lr is 'fast'", "seed is 1.5", "an item of sources", "clip is -1"):
        assert words in error, (words, error)


def test_epochs_decide_the_steps(tmp_path: Path) -> None:
    settings = without(tiny_settings(tmp_path), "--steps", "--warmup")
    common = [*settings, "--out", str(tmp_path / "out"), "--warmup", "5", "--batch_size", "4"]

    def optimizer(name: str, *more: str) -> tuple[int, int]:
        found = open_settings(name, [*common, *more]).loop.optimizer
        return found.steps, found.warmup

    assert optimizer("stage2", "--epochs", "10") == (20, 2), "of 8 images"
    assert optimizer("stage1", "--epochs", "10") == (40, 4), "of 16 captions"
    (tmp_path / "epochs.yaml").write_text("epochs: 10\n")
    (tmp_path / "own.yaml").write_text("base: epochs.yaml\nsteps: 6\n")
    assert optimizer("stage2", "--recipe", str(tmp_path / "own.yaml")) == (6, 5)
    assert optimizer("stage2", "--recipe", str(tmp_path / "own.yaml"), "--steps", "7") == (7, 5), (
        "the command line wins"
    )
    assert optimizer("stage2", "--steps", "4") == (4, 0) and optimizer("stage2", "--steps", "5") == (5, 0)
    assert optimizer("stage2", "--steps", "30", "--warmup", "50") == (30, 3), "a recipe's warm-up is shortened"


WRONG = {
    "lr: fast": "lr is 'fast': give a float",
    "compile: 1": "compile is 1: give true or false",
    "train_data: [photos]": "an item of train_data is 'photos': give a mapping",
    "vision_std: [0, 1, 1]": "vision_std is (0, 1, 1): give three numbers above 0",
    "seed: -1": "seed is -1: give 0 to 1,000,000,000",
    "ask_prompt: 'Q: {x}'": "ask_prompt is 'Q: {x}': give a text with {}",
    "hidden_positions: 1.0": "hidden_positions is 1.0: give 0 to below 1",
    "lr: [": "is not YAML",
    "base: wrong.yaml": "is based on itself",
    "- lr": "is not a mapping",
}


@pytest.mark.parametrize("line", WRONG)
def test_invalid_recipe_value_is_one_line(line: str, tmp_path: Path, error_of: Any) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(line)
    assert WRONG[line] in error_of(stage2.main, ["--recipe", recipe, "--out", "o", "--train_table", tmp_path])


def test_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_settings(tmp_path)
    encoder = ["--vision_source", "timm:test_vit", "--vision_size", "160", *encoder_weights(tmp_path, "test_vit")]
    llm = [*NANO_STAGE2, "--llm_source", str(t5_folder(tmp_path / "t5")), "--end", "<|end|>"]
    out = tmp_path / "out"
    assert stage2.main([*settings, *encoder, *llm, "--out", str(out), "--dry-run", "--gpus", "2"]) == 0
    output = capsys.readouterr().out
    batch = "4 images (2 a GPU in 1 micro-batches)"
    cut = "max_text_tokens 40 cuts 0 of 16 texts"
    for words in ("trained:", "one of 2 GPUs", batch, "8 images in 1 sources", cut, "llm", "frozen", "GFLOPs"):
        assert words in output, (words, output)
    assert not list(out.glob("step-*")) and not (tmp_path / "features").exists()
    assert stage2.main([*settings, *encoder, *llm, "--out", str(out), "--steps", "2"]) == 0, "and it does train"


def test_dry_run_names_all_mistakes(tmp_path: Path, error_of: Any) -> None:
    settings = tiny_settings(tmp_path)
    llm = llm_folder(tmp_path / "llm")
    (llm / "model.safetensors").unlink()
    (tmp_path / "table.tsv").write_text("image\tcaption\n")
    arguments = [*NANO_STAGE2, *options(llm_source=llm, end="the end", gpus=3), "--dry-run"]
    error = error_of(stage2.main, [*settings, *arguments, "--out", str(tmp_path / "out")])
    for words in ("batch_size 4", "3 processes", "no rows", "'the end'"):
        assert words in error, (words, error)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_dry_run_checks_disk_space(tmp_path: Path, error_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    settings = [*tiny_settings(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]
    assert "2 checkpoints need" in error_of(stage1.main, settings)


def test_dry_run_names_missing_parts_and_invalid_values(tmp_path: Path, error_of: Any) -> None:
    nowhere = "--llm_source ./no/llm --qformer_init ./no/bert --train_table no/table.tsv --images x".split()
    assert "gpus describes a dry run" in error_of(stage2.main, [*nowhere, "--out", tmp_path / "out", "--gpus", "2"])
    error = error_of(stage2.main, [*nowhere, "--steps", "0", "--out", str(tmp_path / "out"), "--dry-run"])
    for words in ("steps is 0", "no/llm", "no/bert", "no/table.tsv"):
        assert words in error, (words, error)
    assert error.count("no/table.tsv") == 1


def test_dry_run_opens_images_from_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: Any
) -> None:
    settings = [*tiny_settings(tmp_path), "--out", str(tmp_path / "out")]
    assert stage1.main([*settings, "--dry-run"]) == 0
    assert "8 images opened, 0 cannot be read" in capsys.readouterr().out
    pictures = sorted((tmp_path / "images").glob("*"))
    pictures[-1].write_bytes(b"noise")
    assert stage1.main([*settings, "--no-cache-features", "--dry-run"]) == 0
    assert "8 images opened, 1 cannot be read: " in capsys.readouterr().out
    for picture in pictures:
        picture.write_bytes(b"noise")
    assert "none of 8 sampled images can be read" in error_of(stage1.main, [*settings, "--dry-run"])


def test_small_data_set_is_noted_in_stage1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = options(out=tmp_path / "out", batch_size=12)
    settings = [*tiny_settings(tmp_path), *given, "--no-cache-features"]
    words = "batch_size 12 is more than the 8 images: an image repeats within a batch, lower it"
    assert stage1.main([*settings, "--dry-run"]) == 0
    assert words in capsys.readouterr().out
