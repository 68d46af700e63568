"""Random tiny checkpoints of both stages -> blip2rt-export -> bundles, compared with PyTorch; errors; kill -9."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

import blip2rt
from blip2rt.bundle import read, verify
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import Blip2, Blip2Config, TrainableModel
from blip2rt.modeling.checkpoint import Checkpoint, save_model
from blip2rt.modeling.llm import LlmConfig, load_tokenizer
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.quantize import round_weights
from blip2rt.modeling.vision import VisionConfig, VisionEncoder
from blip2rt.modeling.vit import VitConfig
from export.cli import main
from export.convert import main as convert
from export.graphs import trace
from tests.seeds import new_seed
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import onnx_validity
from tests.tiny import training as tiny_training

pytestmark = pytest.mark.long(85)

ROOT = Path(blip2rt.__file__).parents[1]
FLOAT = "vision=fp32,qformer=fp32,llm=fp32,retrieval=fp32"
SOURCES = ({"part": "all", "name": "random numbers", "licence": "CC0-1.0", "origin": "the tests"},)


@dataclass
class Made:
    """Two checkpoints, photographs, and the bundles exported from them."""

    stage1: Path
    stage2: Path
    images: Path
    exact: Path  # everything in float32
    small: Path  # int8 and int4

    def arguments(self, out: Path, *more: str) -> list[str]:
        return ["--ckpt", str(self.stage2), "--retrieval-ckpt", str(self.stage1), "--out", str(out), *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    seed = new_seed()
    torch.manual_seed(seed)
    folder = tmp_path_factory.mktemp("export")
    tiny_training.caption_table(folder, images=12)
    torch.save(timm.create_model("test_efficientnet").state_dict(), folder / "vision.pth")
    vision = VisionConfig("timm:test_efficientnet", str(folder / "vision.pth"), 64, 64, positions=4, features=256)
    bert = str(tiny_training.bert_folder(folder / "bert"))
    geometry = BertSource(bert).geometry
    qformer = QFormerConfig(**geometry, queries=4, vision_width=256)
    first = Blip2Config(1, vision, qformer, qformer_init=bert, embed_dim=16, max_text_length=12, sources=SOURCES)
    llm = LlmConfig(str(tiny_training.llm_folder(folder / "llm")), bits=4, block=32, end="<|end|>")
    second = replace(first, stage=2, llm=llm, qformer=replace(qformer, text_branch=False))
    paths = [save(config, folder / f"stage{config.stage}") for config in (first, second)]
    made = Made(*paths, folder / "images", folder / "exact", folder / "small")
    assert main(made.arguments(made.exact, "--precision", FLOAT)) == 0
    precision = "vision=int8,qformer=int8w"
    assert main(made.arguments(made.small, "--precision", precision, "--calib", str(made.images))) == 0
    return made


def save(config: Blip2Config, folder: Path) -> Path:
    model = tiny_blip2.build(config)
    for name, parameter in model.named_parameters():  # add noise: biases and norms start at 0 and 1
        if not name.startswith(("vision.", "llm.", "temperature")):  # a temperature must stay positive
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    if (
        config.stage == 1
    ):  # so that int4's rounding, coarse in such a narrow model, stays within the limit of its log-odds
        model.itm_head.weight.data.mul_(0.5)
    folder.mkdir()
    save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def model(made: Made) -> blip2rt.Model:
    return blip2rt.load(made.exact, threads=1)


def pictures(made: Made) -> list[Path]:
    return sorted(made.images.iterdir())[:3]


def features(made: Made, model: blip2rt.Model, reference: Blip2) -> torch.Tensor:
    from blip2rt.image import to_pixels

    return reference.vision_features(torch.from_numpy(to_pixels(pictures(made), model.bundle.manifest.image)))


def test_graphs_are_valid_onnx(made: Made) -> None:
    assert not onnx_validity.faults(made.exact) + onnx_validity.faults(made.small)


@torch.no_grad()
def test_greedy_tokens_equal_hugging_face(made: Made, model: blip2rt.Model) -> None:
    reference = Checkpoint(made.stage2).load()
    prefix = reference.prefix_embeds(reference.query_output(features(made, model, reference)))
    eos = list(model.bundle.manifest.llm.eos_token_ids)
    want = [
        [token for token in ids if token not in eos]
        for ids in reference.llm.generate(
            inputs_embeds=prefix,
            do_sample=False,
            max_new_tokens=8,
            min_new_tokens=1,
            eos_token_id=eos,
            pad_token_id=eos[0],
        ).tolist()
    ]
    tokenizer = load_tokenizer(reference.config.llm.source).backend_tokenizer
    texts = [" ".join(tokenizer.decode(ids).split()) for ids in want]
    got = model.caption(pictures(made), num_beams=1, max_new_tokens=8)
    assert [text.replace(" ", "") for text in got] == [text.replace(" ", "") for text in texts]


@torch.no_grad()
def test_match_equals_pytorch(made: Made, model: blip2rt.Model) -> None:
    reference = Checkpoint(made.stage1).load()
    seen = features(made, model, reference)
    texts = ["a dog runs", "the woman sits on the red grass with two cats and a ball", "xyz"]
    tokens = BertSource(reference.config.qformer_init).tokenizer(
        texts, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    images = reference.image_embeds(reference.query_output(seen))
    cosine = (images @ reference.text_embeds(ids, mask)[:, :, None]).amax((1, 2))
    probability = reference.itm_logits(seen, ids, mask).softmax(-1)[:, 1]
    for match, p, c in zip(model.match(pictures(made), texts), probability, cosine, strict=True):
        assert match.probability == pytest.approx(float(p), abs=1e-4)
        assert match.cosine == pytest.approx(float(c), abs=1e-4)


def test_quantized_bundle_runs_and_reports_its_precisions(made: Made) -> None:
    bundle = verify(made.small)
    manifest = bundle.manifest
    precisions = {name: component.precision for name, component in manifest.components.items()}
    int4 = dict.fromkeys(("llm", "embed", "image_embed", "text_embed", "itm"), "int4")
    assert precisions == {"vision": "int8-static", "qformer": "int8w", **int4}
    checks = {check.component: check for check in manifest.verification}
    assert set(checks) == {*precisions, "all"}
    assert checks["all"].precision == "int8-static/int8w/int4" and 0 <= checks["all"].agreement <= 1
    assert -1 <= checks["all"].cosine < checks["llm"].cosine + 0.1, "three roundings are no better than one of them"
    assert [source.name for source in manifest.sources] == ["random numbers"]
    assert manifest.decoding["caption"].num_beams == 3
    model = blip2rt.load(made.small, threads=1)
    assert isinstance(model.caption(pictures(made)[0]), str)
    assert isinstance(model.ask(pictures(made)[0], "what is red"), str)
    assert 0 <= model.match(pictures(made)[0], "a dog").probability <= 1
    assert not [path.name for path in made.small.iterdir() if path.name.startswith(".")]


def test_graphs_share_their_weights(made: Made) -> None:
    """A tied embedding is stored once, and so is every weight of the three retrieval graphs."""
    places = {}
    for name in ("embed", "llm", "image_embed", "text_embed", "itm"):
        graph = onnx.load(made.small / f"{name}.onnx", load_external_data=False).graph
        entries = [{e.key: e.value for e in tensor.external_data} for tensor in graph.initializer]
        places[name] = {(e["location"], e["offset"], e["length"]) for e in entries if e}
    assert places["embed"] <= places["llm"]
    common = places["image_embed"] & places["itm"]
    assert {file for file, _, _ in common} == {"retrieval.data"} and common
    stored = sum(int(length) for _, _, length in places["image_embed"] | places["text_embed"] | places["itm"])
    assert (made.small / "retrieval.data").stat().st_size < stored + 4096 * 400


def test_stage_1_alone_exports_a_retriever(made: Made, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("# card\n")
    out = tmp_path / "retriever"
    arguments = ["--ckpt", str(made.stage1), "--out", str(out), "--no-verify", "--name", "r", "--card", str(card)]
    assert main([*arguments, "--precision", "vision=fp16,retrieval=fp16"]) == 0
    manifest = read(out).manifest
    assert manifest.llm is None and manifest.name == "r" and not manifest.verification
    assert (out / "MODEL_CARD.md").read_text() == "# card\n"
    assert blip2rt.load(out, threads=1).embed_text(["a dog", "cat"]).shape == (2, 16)


ERRORS = [
    (["--ckpt", "/no/such"], "does not exist"),
    (["--ckpt", "{images}"], "is not a checkpoint"),
    (["--ckpt", "{stage1}", "--retrieval-ckpt", "{stage1}"], "stage 2"),
    (["--ckpt", "{stage2}", "--retrieval-ckpt", "{stage2}"], "give stage 1"),
    (["--precision", "vision=int4,head=fp16,llm"], "head=fp16"),
    (["--precision", "vision=int8-static"], "--calib"),
    (["--target", "trt", "--precision", "llm=int8"], "llm=int8-static needs photographs"),
    (["--target", "trt", "--precision", "llm=int8w"], "llm may be fp32, fp16, int8, int8-static, int4"),
    (["--target", "cuda"], "choose from ort, trt"),
    (["--length-penalty", "nan"], "--length-penalty is nan"),
    (["--llm-activations", "16", "--precision", "llm=fp16"], "--llm-activations 16 applies to llm=int4"),
    (["--llm-activations", "12"], "choose from 8, 16"),
    (["--image-size", "0"], "cannot read 0 x 0 pixels"),
    (["--calib", "/no/such"], "is no folder"),
    (["--card", "/no/such.md"], "is no file"),
    (["--out", "{exact}"], "exists already"),
    (["--out", "{images}", "--overwrite"], "not a bundle"),
    (["--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize(("arguments", "words"), ERRORS)
def test_errors_are_one_line_before_any_work(
    made: Made,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    given = [text.format(**vars(made)) for text in arguments]
    monkeypatch.setattr(trace, "trace", lambda *_, **__: pytest.fail("the work began"))
    assert main([*made.arguments(tmp_path / "out"), *given]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("blip2rt-export: error: ") and words in lines[0]
    assert not list(tmp_path.iterdir())


def test_damaged_checkpoint_is_an_error(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((made.stage1 / "config.json").read_bytes())
    (damaged / "model.safetensors").write_bytes((made.stage1 / "model.safetensors").read_bytes()[:1000])
    assert main(["--ckpt", str(damaged), "--out", str(tmp_path / "out")]) == 2
    (damaged / "config.json").write_text("{")
    assert main(["--ckpt", str(damaged), "--out", str(tmp_path / "out")]) == 2
    assert all("damaged" in line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize(("bits", "level"), [(None, 2), (16, 2), (8, 4)])
def test_activation_bits_with_int4_weights(made: Made, bits: int | None, level: int, tmp_path: Path) -> None:
    """The default depends on the size: small models need 16 bits."""
    chosen = [] if bits is None else ["--llm-activations", str(bits)]
    arguments = ["--ckpt", str(made.stage2), "--out", str(tmp_path / "b"), "--no-verify"]
    assert main([*arguments, "--precision", "vision=fp32,qformer=int4,llm=int4", *chosen]) == 0
    for name, wanted in (("llm", level), ("qformer", 4)):
        nodes = onnx.load(tmp_path / "b" / f"{name}.onnx", load_external_data=False).graph.node
        products = [{a.name: a.i for a in node.attribute} for node in nodes if node.op_type == "MatMulNBits"]
        assert {product["accuracy_level"] for product in products} == {wanted}


@pytest.mark.parametrize("size", ["64k", "220k"])
def test_full_disk_is_one_line(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    """A tmpfs too small for the encoder's weights, and one that fills up later."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        arguments = ["--ckpt", str(made.stage1), "--out", str(disk / "b"), "--no-verify", "--precision", "vision=fp16"]
        assert main(arguments) == 2
        gc.collect()  # to detect unclosed files
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    *_, line = lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert (
        len(lines) == 1
        and line == f"blip2rt-export: error: no space left on the disk of {disk}: free some and run again"
    )


STOPPING = """
import sys, time
from export.cli import main
from export.graphs import trace

def save(*arguments, whole=trace.save):
    whole(*arguments)
    print("written", flush=True)
    time.sleep(10000)

trace.save = save
main(sys.argv[1:])
"""  # an export that pauses after the first graph


def test_killed_export_leaves_no_bundle(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "b"
    arguments = ["--ckpt", str(made.stage1), "--out", str(out), "--no-verify", "--precision", "vision=fp16"]
    with subprocess.Popen([sys.executable, "-c", STOPPING, *arguments], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".b.*/*.onnx")) and not out.exists() and len(list(tmp_path.iterdir())) == 1
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert np.isfinite(blip2rt.load(out, threads=1).embed_text("a dog")).all()


@pytest.mark.parametrize(("bundle", "bits"), [("exact", {}), ("small", {1: 4, 2: 8})])
def test_bundle_converts_back_to_its_checkpoints(
    made: Made, bundle: str, bits: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert([str(getattr(made, bundle)), "--to", "ours", "--out", str(tmp_path / "ours")]) == 0
    folders = [tmp_path / "ours" / f"stage{stage}" for stage in (1, 2)]
    assert capsys.readouterr().out.split() == [str(folder) for folder in folders]
    for stage, source, folder in zip((1, 2), (made.stage1, made.stage2), folders, strict=True):
        assert Checkpoint(folder).config == Checkpoint(source).config
        wanted, got = (Checkpoint(path).load(vision=False, llm=False) for path in (source, folder))
        if bits:
            round_weights(wanted, bits[stage], 64)
            if bits[stage] == 8:  # other large constants are then fp16
                wanted.vision_positions.data = wanted.vision_positions.data.half().float()
        theirs, ours = wanted.state_dict(), got.state_dict()
        compared = [name for name in theirs if not name.startswith("lm_head.")]  # not in any graph
        for name in compared:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, msg=f"stage {stage}: {name}")
        assert len(compared) > 40
    # Exporting again gives the same bundle, except in 8 bits, whose scales are not reproduced.
    again = ["--ckpt", str(folders[1]), "--retrieval-ckpt", str(folders[0]), "--out", str(tmp_path / "again")]
    precision = FLOAT if bundle == "exact" else "vision=int8,qformer=int8w"
    assert main([*again, "--precision", precision, "--calib", str(made.images)]) == 0
    for data in ("retrieval.data", *(["qformer.data", "llm.data"] if bundle == "exact" else [])):
        assert (tmp_path / "again" / data).read_bytes() == (getattr(made, bundle) / data).read_bytes(), data


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8w"])
@torch.no_grad()
def test_trained_encoder_is_recovered(made: Made, precision: str, tmp_path: Path) -> None:
    """Its batch norms are folded into its convolutions, as in the graph."""
    config = Checkpoint(made.stage2).config
    trained = TrainableModel(Blip2Config(vision=config.vision, vision_trained=True))
    trained.vision = VisionEncoder(config.vision)
    for name, values in trained.vision.state_dict().items():
        if values.is_floating_point():
            values.mul_(1 + 0.1 * torch.rand_like(values))
            if name.endswith(("bias", "running_mean")):
                values.add_(0.1 * torch.randn_like(values))
    (tmp_path / "was").mkdir()
    save_model(trained, tmp_path / "was")
    model = Checkpoint(made.stage2).load(vision=False, llm=False)
    model.config = replace(config, vision=replace(config.vision, weights=str(tmp_path / "was")))
    (tmp_path / "stage2").mkdir()
    save_model(model, tmp_path / "stage2")
    arguments = ["--ckpt", str(tmp_path / "stage2"), "--precision", f"vision={precision},qformer=fp32,llm=fp32"]
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    shutil.rmtree(tmp_path / "was")
    assert convert([str(tmp_path / "b"), "--to", "ours", "--out", str(tmp_path / "ours")]) == 0
    got = Checkpoint(tmp_path / "ours" / "stage2").load(llm=False)
    assert got.config.vision.weights == str(tmp_path / "ours" / "encoder")
    pixels = np.random.default_rng(new_seed()).normal(size=(2, 3, 64, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "b" / "vision.onnx")
    [wanted] = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(got.vision_features(torch.from_numpy(pixels)), wanted, atol=1e-3 * np.abs(wanted).max())
    exact = trained.vision(torch.from_numpy(pixels)).numpy()
    assert np.corrcoef(exact.ravel(), wanted.ravel())[0, 1] > 0.99
    again = [*arguments[2:], "--ckpt", str(tmp_path / "ours" / "stage2"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again" / "stage2.json").read_bytes() == (tmp_path / "b" / "stage2.json").read_bytes()


@torch.no_grad()
def test_trained_vision_transformer_is_recovered(made: Made, tmp_path: Path) -> None:
    """From an int4 bundle, and again from a bundle of the recovered checkpoint."""
    config = Checkpoint(made.stage1).config
    vit = VitConfig(width=64, layers=2, heads=2, mlp_width=128, patch=16, activation="quick_gelu", pre_norm=True)
    vision = replace(config.vision, source="vit", weights=None, height=32, width=32, positions=5, features=64, vit=vit)
    qformer = replace(config.qformer, vision_width=64)
    model = tiny_blip2.build(replace(config, vision=vision, qformer=qformer, vision_trained=True), llm=False)
    for values in (
        each for each in model.state_dict().values() if each.ndim
    ):  # equal tensors would be merged into one constant
        values.add_(0.05 * torch.randn_like(values))
    (tmp_path / "was").mkdir()
    save_model(model, tmp_path / "was")
    source = tmp_path / "was"
    for name in ("first", "second"):
        bundle = tmp_path / f"{name}.bundle"
        assert main(["--ckpt", str(source), "--precision", "vision=int4,retrieval=fp32", "--out", str(bundle)]) == 0
        assert json.loads((bundle / "stage1.json").read_text())["vision"]["weights"] == "encoder"
        assert convert([str(bundle), "--to", "ours", "--out", str(tmp_path / name)]) == 0
        source = tmp_path / name / "stage1"
        got = Checkpoint(source).load(llm=False)
        pixels = np.random.default_rng(new_seed()).normal(size=(2, 3, 32, 32)).astype(np.float32)
        [wanted] = onnxruntime.InferenceSession(bundle / "vision.onnx").run(None, {"pixels": pixels})
        np.testing.assert_allclose(got.vision_features(torch.from_numpy(pixels)), wanted, atol=0.05)
        assert np.corrcoef(got.vision_features(torch.from_numpy(pixels)).ravel(), wanted.ravel())[0, 1] > 0.999


def test_unsuitable_bundles_are_rejected(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = tmp_path / "without"
    shutil.copytree(made.exact, without)
    manifest = json.loads((without / "blip2rt.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("stage")}
    (without / "blip2rt.json").write_text(json.dumps(manifest))
    for source, to, said in (
        (without, "ours", "has no config of its checkpoint"),
        (made.exact, "hf", "give --to ours"),
        (made.stage2, "ours", "is no bundle"),
        (made.exact, "theirs", "choose from hf, ours"),
    ):
        assert convert([str(source), "--to", to, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
