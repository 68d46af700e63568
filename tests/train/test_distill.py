"""A small encoder that learns from a larger one: what it is led to, resumed trainings, what comes of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from blip2rt.modeling.vision import VisionConfig, VisionEncoder, measured
from train import stage1
from train.data.features import to_pixels
from train.extras import distill, teacher
from train.recipe import parse

from ..tiny.parts import tiny_settings

pytestmark = pytest.mark.long(40)

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture(scope="module", params=["clip", "dinov2"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A teacher of 4 x 4 positions and [CLS], and a student of 2 x 2."""
    folder = tmp_path_factory.mktemp("distill")
    given = tiny_settings(folder)
    if request.param == "clip":
        clip = CLIPVisionConfig(**SIZES, intermediate_size=32, projection_dim=12, image_size=32, patch_size=8)
        CLIPVisionModelWithProjection(clip).save_pretrained(folder / "teacher")
    else:
        Dinov2Model(Dinov2Config(**SIZES, image_size=32, patch_size=8)).save_pretrained(folder / "teacher")
    return [*given, "--teacher", str(folder / "teacher"), "--teacher_size", "32", "--views", "3"]


def test_targets_are_the_teachers(settings: list[str], tmp_path: Path) -> None:
    """Positions averaged over the grid, mirrored with their image; both in float16."""
    work = distill.Distill(parse(distill.DistillSettings, [*settings, "--out", str(tmp_path)], ""))
    told = parse(distill.DistillSettings, [*settings, "--out", str(tmp_path)], "").teacher
    config = VisionConfig(height=32, width=32, mean=told.teacher_mean, std=told.teacher_std)  # type: ignore[arg-type]
    pixels = torch.stack([to_pixels(teacher.mixed_view(work.targets.paths, v, 1), config) for v in range(3)])
    model = teacher.Teacher(told.teacher).model
    output = model(pixel_values=pixels, output_hidden_states=True)
    grid = output.hidden_states[-2][:, 1:].unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    rows = np.array([1, 9, 17])
    positions, image = work.targets.rows(rows)
    exact = output.image_embeds if hasattr(output, "image_embeds") else output.pooler_output
    torch.testing.assert_close(positions, grid, atol=0.05, rtol=0.05)  # a bf16 teacher
    torch.testing.assert_close(image, exact, atol=0.05, rtol=0.05)
    plain = work._seen(work.targets, rows, np.zeros(3, bool))
    mirrored = work._seen(work.targets, rows, np.array([True, False, True]))
    torch.testing.assert_close(mirrored.hidden[0], plain.hidden[0].flip(2))
    torch.testing.assert_close(mirrored.positions[2], plain.positions[2][[1, 0, 3, 2]])
    torch.testing.assert_close(mirrored.positions[1], plain.positions[1])


def test_views_repeat_and_mix(tmp_path: Path) -> None:
    paths = []
    for number in range(40):  # flat images, so that a pixel says which of them it comes from
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (16, 12), (5 * number, 0, 0)).save(paths[-1])
    assert all(teacher.mixed_view(paths, 0, i).getcolors() == [(192, (5 * i, 0, 0))] for i in range(40))
    for view, least, most in ((1, 2, 20), (2, 36, 40)):  # a quarter, and all but where both are one
        first, again = ([np.asarray(teacher.mixed_view(paths, view, i)) for i in range(40)] for _ in range(2))
        np.testing.assert_array_equal(first, again)
        alone = sum((pixels[..., 0] == 5 * i).all() for i, pixels in enumerate(first))
        assert least <= 40 - alone <= most and first[0].shape == (12, 16, 3)


def test_it_learns_and_resumes_bit_for_bit(settings: list[str], tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    given = [*settings, "--steps", "160", "--save_every", "80", "--batch_size", "8", "--lr", "4e-3",
             "--frozen_layers", "1", "--cache_layers", "--eval_every", "160", "--out"]  # fmt: skip
    assert distill.main([*given, str(whole)]) == 0
    shutil.copytree(whole / "step-000080", halves / "step-000080")
    assert distill.main([*given, str(halves)]) == 0
    first, second = (load_file(out / "step-000160" / "model.safetensors") for out in (whole, halves))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    angles = [line["image"] for line in lines if "image" in line]
    assert np.mean(angles[-20:]) < 0.8 * np.mean(angles[:20]), angles
    before = load_file(whole / "step-000080" / "model.safetensors")
    stays = {name for name in first if torch.equal(first[name], before[name])}
    frozen = [name for name in first if name.startswith(("vision.body.model.conv_stem", "vision.body.model.blocks.0."))]
    assert stays.issuperset(frozen) and "vision.body.model.conv_head.weight" not in stays


@pytest.mark.parametrize("source", ["timm:test_efficientnet", "timm:test_vit"])
def test_layers_may_be_left_and_entered(source: str) -> None:
    """Lower and upper layers one after the other are the encoder, and it is whole afterwards."""
    encoder = VisionEncoder(measured(VisionConfig(source, None, 160, 160)))
    pixels, names = torch.randn(2, 3, 160, 160), list(encoder.state_dict())
    for layers in (0, 1, 2):
        hidden = encoder.lower(pixels, layers)
        torch.testing.assert_close(encoder.upper(hidden, layers), encoder(pixels))
        assert list(encoder.state_dict()) == names


def test_kept_features_equal_computed_ones(settings: list[str], tmp_path: Path) -> None:
    given = [*settings, "--features", str(tmp_path / "features"), "--frozen_layers", "2", "--out", str(tmp_path)]
    work = distill.Distill(parse(distill.DistillSettings, [*given, "--cache_layers"], ""))
    rows, mirrored = np.array([1, 9, 17]), np.array([False, True, True])
    kept = work._seen(work.targets, rows, mirrored)
    work.hidden = None
    computed = work._seen(work.targets, rows, mirrored)
    torch.testing.assert_close(kept.hidden, computed.hidden, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(kept.positions, computed.positions)
    assert work.loss(kept)["loss"].item() == pytest.approx(work.loss(computed)["loss"].item(), rel=1e-2)


def test_a_training_sees_by_the_distilled_encoder(settings: list[str], tmp_path: Path) -> None:
    assert distill.main([*settings, "--out", str(tmp_path / "encoder")]) == 0
    weights = str(tmp_path / "encoder" / "step-000006")
    student = load_file(Path(weights, "model.safetensors"))
    encoder = VisionEncoder(VisionConfig("timm:test_efficientnet", weights, 64, 64, positions=4, features=256))
    for name, values in encoder.state_dict().items():
        assert torch.equal(values, student[f"vision.{name}"]), name
    at = settings.index("--teacher")
    arguments = [*settings[:at], "--vision_weights", weights, "--views", "1", "--out", str(tmp_path / "stage1")]
    assert stage1.main(arguments) == 0


def test_what_a_former_encoder_knew_stays_readable(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It begins with nothing lost, loses less than without being held, and dev says how much."""
    assert distill.main([*settings, "--out", str(tmp_path / "first")]) == 0
    former = str(tmp_path / "first" / "step-000006")
    table = settings[settings.index("--train_table") + 1]
    given = [*settings, "--vision_weights", former, "--former", former, "--frozen_layers", "1", "--steps", "60",
             "--lr", "4e-3", "--dev_table", table, "--eval_every", "60"]  # fmt: skip
    given += ["--cache_layers", "--features", str(tmp_path / "features")]
    work = distill.Distill(parse(distill.DistillSettings, [*given, "--out", str(tmp_path / "unused")], ""))
    rows = np.arange(8)
    losses = work.loss(work._seen(work.targets, rows, np.zeros(8, bool)))
    assert losses["former"].item() < 1e-8 and losses["former_image"].item() < 1e-6
    weights = {"positions": 1, "image": 2, "likeness": 1, "former": 1, "former_image": 2}
    assert losses["loss"].item() == pytest.approx(sum(w * losses[name].item() for name, w in weights.items()))
    lost = {}
    for weight in ("0", "4"):
        out = tmp_path / weight
        assert distill.main([*given, "--former_weight", weight, "--out", str(out)]) == 0
        last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        lost[weight] = last["dev_former"]
    assert 0 < lost["4"] < 0.7 * lost["0"], lost
    other = str(tmp_path / "4" / "step-000060")
    distill.Distill(parse(distill.DistillSettings, [*given, "--vision_weights", other, "--out", other], ""))
    assert len(list((tmp_path / "features").glob("*-mirrored.npy"))) == 3, "one a view for all that share these layers"
    capsys.readouterr()
    wrong = ["--former", other, "--frozen_layers", "3", "--out", str(tmp_path / "no")]
    assert distill.main([*given, *wrong]) == 2
    assert "frozen_layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--teacher", ""], ["teacher is missing", "--teacher VALUE"]),
        (["--teacher", "nowhere"], ["nowhere"]),
        (["--cache_layers"], ["cache_layers", "frozen_layers"]),
        (["--dry-run", "--start", "x"], ["start, dry_run", "vision_weights"]),
        (["--teacher", "{images}"], ["teacher", "cannot be loaded"]),
        (["--vision_weights", "nowhere.pth"], ["vision weights 'nowhere.pth'", "cannot be read"]),
        (["--vision_source", "timm:test_vit", "--vision_size", "160", "--vision_positions", "0"], ["test_vit", "101"]),
    ],
)
def test_wrong_settings_are_one_line(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: list[str]
) -> None:
    images = settings[settings.index("--images") + 1]
    arguments = [*settings, "--out", str(tmp_path), *(text.format(images=images) for text in more)]
    assert distill.main(arguments) == 2
    told = capsys.readouterr().err
    [error] = [line for line in told.splitlines() if ": error: " in line]
    assert all(word in error for word in words) and "Traceback" not in told, told
