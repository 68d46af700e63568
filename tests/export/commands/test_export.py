"""Random tiny checkpoints of both stages -> blip2rt-export -> bundles, compared with PyTorch; errors."""

from pathlib import Path

import onnx
import pytest
import torch

import blip2rt
from blip2rt.bundle import read, verify
from blip2rt.image import to_pixels
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.llm import load_tokenizer
from blip2rt_export.cli import main
from blip2rt_export.graphs import trace
from tests.export.both_stages import Made
from tests.export.commands_in_process import export
from tests.tiny import onnx_validity

pytestmark = pytest.mark.long(50, "whole exports, from the command to captions")


@pytest.fixture(scope="module")
def model(made: Made) -> blip2rt.Model:
    return blip2rt.load(made.exact, threads=1)


def pictures(made: Made) -> list[Path]:
    return sorted(made.images.iterdir())[:3]


def features(made: Made, model: blip2rt.Model, reference: Blip2) -> torch.Tensor:
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
    assert precisions == {"vision": "fp16", "qformer": "int8w", **int4}
    checks = {check.component: check for check in manifest.verification}
    assert set(checks) == {*precisions, "all"}
    assert checks["all"].precision == "fp16/int8w/int4" and 0 <= checks["all"].agreement <= 1
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
    arguments = ["--no-verify", "--name", "r", "--card", card]
    out = export(made.stage1, tmp_path / "retriever", *arguments, precision="vision=fp16,retrieval=fp16")
    manifest = read(out).manifest
    assert manifest.llm is None and manifest.name == "r" and not manifest.verification
    assert (out / "MODEL_CARD.md").read_text() == "# card\n"
    assert blip2rt.load(out, threads=1).embed_text(["a dog", "cat"]).shape == (2, 16)


ERRORS = [
    (["--ckpt", "/no/such"], "does not exist"),
    (["--ckpt", "{exact}"], "exact --to ours --out DIR"),
    (["--ckpt", "{stage1}", "--retrieval-ckpt", "{stage1}"], "stage 2"),
    (["--ckpt", "{stage2}", "--retrieval-ckpt", "{stage2}"], "give stage 1"),
    (["--precision", "vision=int4,head=fp16,llm"], "head=fp16"),
    (["--precision", "vision=int8-static"], "vision may be fp32, fp16, int8, int8-dynamic, int8w, int4"),
    (["--target", "trt", "--precision", "llm=int8"], "llm=int8 needs photographs to calibrate on: give --calibration"),
    (["--target", "trt", "--precision", "llm=int8w"], "llm may be fp32, fp16, int8, int4"),
    (["--llm-activations", "16", "--precision", "llm=fp16"], "--llm-activations 16 applies to llm=int4"),
    (["--image-size", "0"], "cannot read 0 x 0 pixels"),
    (["--precision", "int8", "--calib", "{images}"], "is for --target trt with --precision int8"),
    (["--target", "trt", "--precision", "int8", "--calib", "/no/such"], "/no/such is not a folder"),
    (["--target", "trt", "--precision", "int8", "--calib", "{exact}"], "has 0 images: give 8"),
    (["--out", "{exact}"], "exists already"),
    (["--out", "{images}", "--overwrite"], "not a bundle"),
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


@pytest.mark.parametrize(("bits", "level"), [(None, 2), (8, 4)])
def test_activation_bits_with_int4_weights(made: Made, bits: int | None, level: int, tmp_path: Path) -> None:
    """The default depends on the size: small models need 16 bits."""
    chosen = [] if bits is None else ["--llm-activations", str(bits)]
    export(made.stage2, tmp_path / "b", "--no-verify", *chosen, precision="vision=fp32,qformer=int4,llm=int4")
    for name, wanted in (("llm", level), ("qformer", 4)):
        nodes = onnx.load(tmp_path / "b" / f"{name}.onnx", load_external_data=False).graph.node
        products = [{a.name: a.i for a in node.attribute} for node in nodes if node.op_type == "MatMulNBits"]
        assert {product["accuracy_level"] for product in products} == {wanted}
