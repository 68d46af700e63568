"""The encoder and llm graphs of T5 against Hugging Face: fresh random tiny models, unequal rows, prefill and steps."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from blip2rt.errors import Blip2rtError
from export.checks.sessions import session
from export.checks.stepper import Stepper
from export.graphs import llm, t5, trace
from export.precision.quantizer import BlockFormat, Quantizer
from export.precision.weight_only import quantize_weights
from tests.seeds import new_seed, seed_of
from tests.tiny import onnx_validity
from tests.tiny.bundle import make_manifest
from tests.tiny.language_models import build
from tests.tiny.llm_configs import HIDDEN, VOCAB

pytestmark = pytest.mark.long(17)

SEED = seed_of(__name__)


def export(model, folder: Path, bits: int | None = None) -> None:
    with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
        for name, graph in (
            ("encoder", t5.trace_encoder(model)),
            ("llm", t5.trace_decoder(model)),
            ("embed", trace.trace(llm.embed_graph(model))),
        ):
            if bits:
                assert quantize_weights(graph, bits, Quantizer(BlockFormat(16)))
            trace.save(graph, folder / f"{name}.onnx", data)


@pytest.mark.parametrize("name", ["t5", "tied"])
@torch.no_grad()
def test_graphs_equal_hugging_face(name: str, tmp_path: Path) -> None:
    """Teacher-forced: image and prompt through the encoder, then steps; the whole of Hugging Face's model each time."""
    model = build(name, SEED)
    export(model, tmp_path)
    assert not onnx_validity.faults(tmp_path)
    rng = np.random.default_rng(SEED)
    batch, longest, steps = 3, 20, 16  # farther than the relative positions tell apart
    lengths = [longest, 7, 11]
    embeds = rng.normal(size=(batch, longest, HIDDEN)).astype(np.float32)
    mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)
    encoder = session(tmp_path / "encoder.onnx", 1)
    names = [value.name for value in encoder.get_outputs()]
    seen = dict(zip(names, encoder.run(None, {"inputs_embeds": embeds, "attention_mask": mask}), strict=True))
    assert seen[f"cross_key_{model.config.num_decoder_layers - 1}"].shape == (batch, 4, longest, 16)
    stepper = Stepper(session(tmp_path / "llm.onnx", 1), batch, steps + 1, {**seen, "encoder_mask": mask})
    table = session(tmp_path / "embed.onnx", 1)
    tokens = rng.integers(0, VOCAB, (batch, steps))
    tokens[:, 0] = 0
    want = model(
        inputs_embeds=torch.from_numpy(embeds),
        attention_mask=torch.from_numpy(mask),
        decoder_input_ids=torch.from_numpy(tokens),
    ).logits.numpy()
    start = table.run(None, {"token_ids": tokens[:, :1]})[0]
    got = stepper.prefill(start, np.ones(batch, np.int64))
    for step in range(steps):
        assert np.abs(got - want[:, step]).max() < 1e-4 * max(1, np.abs(want).max()), f"step {step}"
        if step + 1 < steps:
            got = stepper.step(table.run(None, {"token_ids": tokens[:, step + 1 : step + 2]})[0])


@torch.no_grad()
def test_several_tokens_at_once_equal_one_by_one(tmp_path: Path) -> None:
    """The decoder may also be prefilled with more than its start."""
    model = build("t5", new_seed())
    export(model, tmp_path)
    rng = np.random.default_rng(SEED)
    embeds = rng.normal(size=(2, 6, HIDDEN)).astype(np.float32)
    mask = np.ones((2, 6), np.int64)
    encoder = session(tmp_path / "encoder.onnx", 1)
    names = [value.name for value in encoder.get_outputs()]
    seen = dict(zip(names, encoder.run(None, {"inputs_embeds": embeds, "attention_mask": mask}), strict=True))
    stepper = Stepper(session(tmp_path / "llm.onnx", 1), 2, 9, {**seen, "encoder_mask": mask})
    tokens = rng.integers(0, VOCAB, (2, 5))
    rows = session(tmp_path / "embed.onnx", 1).run(None, {"token_ids": tokens})[0]
    got = stepper.prefill(rows, np.array([5, 3]))
    want = model(inputs_embeds=torch.from_numpy(embeds), decoder_input_ids=torch.from_numpy(tokens)).logits.numpy()
    for row, length in enumerate((5, 3)):
        assert np.abs(got[row] - want[row, length - 1]).max() < 1e-4 * max(1, np.abs(want).max())


def test_int4_leaves_the_relative_bias_alone(tmp_path: Path) -> None:
    import onnx

    export(build("t5", new_seed()), tmp_path, bits=4)
    graph = onnx.load(tmp_path / "llm.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert "MatMulNBits" in kinds and "GatherBlockQuantized" not in kinds


def test_manifest_of_an_encoder_decoder(tmp_path: Path) -> None:
    """Old manifests have neither field; a new one needs the encoder and the token that the decoder starts from."""
    from dataclasses import replace

    from blip2rt import bundle as contract
    from blip2rt.bundle import encoder_tensors, llm_tensors
    from blip2rt.bundle.faults import manifest_faults

    def component(name: str, tensors: tuple[tuple[str, ...], tuple[str, ...]]) -> contract.Component:
        inputs, outputs = (tuple(contract.TensorInfo(n, "float32", ("B",)) for n in names) for names in tensors)
        return contract.Component(f"{name}.onnx", "fp32", inputs, outputs)

    plain = {n: component(n, contract.TENSORS.get(n, ((), ()))) for n in ("vision", "qformer", "embed")}
    whole = {
        **plain,
        "llm": component("llm", llm_tensors(1, True)),
        "encoder": component("encoder", encoder_tensors(1)),
    }
    manifest = make_manifest({}, True, False)
    files = {name: contract.FileEntry(1, "") for name in ("tokenizer.json", *(c.graph for c in whole.values()))}
    spec = replace(manifest.llm, encoder_decoder=True, decoder_start_token_id=0)
    good = replace(manifest, components=whole, llm=spec, files=files)
    assert not manifest_faults(good)
    lacking = replace(good, components={n: c for n, c in whole.items() if n != "encoder"})
    assert any("encoder are missing" in fault for fault in manifest_faults(lacking))
    unstarted = replace(good, llm=replace(spec, decoder_start_token_id=None))
    assert any("decoder_start_token_id" in fault for fault in manifest_faults(unstarted))


def test_a_decoder_that_begins_with_nothing_is_refused() -> None:
    model = build("t5", SEED)
    assert t5.start_token(model) == 0
    model.config.decoder_start_token_id, model.generation_config.decoder_start_token_id = None, 3
    assert t5.start_token(model) == 3
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(Blip2rtError, match="decoder_start_token_id"):
        t5.start_token(model)
