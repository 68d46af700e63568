"""The encoder and llm graphs of T5 against Hugging Face: random tiny models, rows of different length, all steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from blip2rt import bundle as contract
from blip2rt.bundle.manifest import to_json
from blip2rt.errors import Blip2rtError
from blip2rt.native import native
from blip2rt_export import targets
from blip2rt_export.checks.sessions import session
from blip2rt_export.checks.stepper import Stepper
from blip2rt_export.checks.verify import run
from blip2rt_export.graphs import t5
from tests.seeds import new_seed, seed_of
from tests.tiny.bundle import make_manifest
from tests.tiny.language_models import build, write
from tests.tiny.llm_configs import HIDDEN, VOCAB

pytestmark = pytest.mark.long(17, "T5's graphs, traced and run")

SEED = seed_of(__name__)


def export(model: Any, folder: Path, precision: str = "fp32") -> None:
    write(targets.ORT.llm_graphs(model, 64), folder, targets.ORT, precision, block=16)


def make_stepper(folder: Path, embeds: np.ndarray, mask: np.ndarray, capacity: int) -> Stepper:
    """Run the encoder, and open the decoder with its output."""
    encoded = run(folder / "encoder.onnx", {"inputs_embeds": embeds, "attention_mask": mask})
    return Stepper(session(folder / "llm.onnx", 1), len(embeds), capacity, {**encoded, "encoder_mask": mask})


def look_up(folder: Path, tokens: np.ndarray) -> np.ndarray:
    return run(folder / "embed.onnx", {"token_ids": tokens})["token_embeds"]


@pytest.mark.parametrize("name", ["t5", "tied"])
@torch.no_grad()
def test_graphs_equal_hugging_face(name: str, tmp_path: Path) -> None:
    """Teacher-forced steps after image and prompt went through the encoder."""
    model = build(name, SEED)
    export(model, tmp_path)
    rng = np.random.default_rng(SEED)
    batch, longest, steps = 3, 20, 16  # beyond the largest relative distance
    lengths = [longest, 7, 11]
    embeds = rng.normal(size=(batch, longest, HIDDEN)).astype(np.float32)
    mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)
    stepper = make_stepper(tmp_path, embeds, mask, steps + 1)
    last_key = stepper.encoded[f"cross_key_{model.config.num_decoder_layers - 1}"]
    assert last_key.shape == (batch, 4, longest, 16)
    tokens = rng.integers(0, VOCAB, (batch, steps))
    tokens[:, 0] = 0
    want = model(
        inputs_embeds=torch.from_numpy(embeds),
        attention_mask=torch.from_numpy(mask),
        decoder_input_ids=torch.from_numpy(tokens),
    ).logits.numpy()
    got = stepper.prefill(look_up(tmp_path, tokens[:, :1]), np.ones(batch, np.int64))
    for step in range(steps):
        assert np.abs(got - want[:, step]).max() < 1e-4 * max(1, np.abs(want).max()), f"step {step}"
        if step + 1 < steps:
            got = stepper.step(look_up(tmp_path, tokens[:, step + 1 : step + 2]))


@torch.no_grad()
def test_prefill_with_several_tokens_equals_hugging_face(tmp_path: Path) -> None:
    """The decoder may start from more than its start token."""
    model = build("t5", new_seed())
    export(model, tmp_path)
    rng = np.random.default_rng(SEED)
    embeds = rng.normal(size=(2, 6, HIDDEN)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (2, 5))
    stepper = make_stepper(tmp_path, embeds, np.ones((2, 6), np.int64), 9)
    got = stepper.prefill(look_up(tmp_path, tokens), np.array([5, 3]))
    want = model(inputs_embeds=torch.from_numpy(embeds), decoder_input_ids=torch.from_numpy(tokens)).logits.numpy()
    for row, length in enumerate((5, 3)):
        assert np.abs(got[row] - want[row, length - 1]).max() < 1e-4 * max(1, np.abs(want).max())


def test_int4_does_not_quantize_relative_biases(tmp_path: Path) -> None:
    export(build("t5", new_seed()), tmp_path, "int4")
    operators = [node.op_type for node in onnx.load(tmp_path / "llm.onnx", load_external_data=False).graph.node]
    assert "MatMulNBits" in operators and "GatherBlockQuantized" not in operators


def test_manifest_of_an_encoder_decoder() -> None:
    """It needs the encoder, and the token that the decoder starts from."""

    def component(name: str) -> contract.Component:
        names = native.component_tensors(name, 1, encoder_decoder=True)
        inputs, outputs = (tuple(contract.TensorInfo(each, "float32", ("B",)) for each in part) for part in names)
        return contract.Component(f"{name}.onnx", "fp32", inputs, outputs)

    components = {name: component(name) for name in ("vision", "qformer", "embed", "llm")}
    complete = {**components, "encoder": component("encoder")}
    manifest = make_manifest({}, True, False)
    files = {name: contract.FileEntry(1, "") for name in ("tokenizer.json", *(c.graph for c in complete.values()))}
    spec = replace(manifest.llm, encoder_decoder=True, decoder_start_token_id=0)
    good = replace(manifest, components=complete, llm=spec, files=files)
    without_encoder, without_start = (
        replace(good, components=components),
        replace(good, llm=replace(spec, decoder_start_token_id=None)),
    )
    for fault, changed in {"encoder are missing": without_encoder, "decoder_start_token_id": without_start}.items():
        assert fault in "; ".join(native.manifest_faults(to_json(changed)))
        assert fault not in "; ".join(native.manifest_faults(to_json(good)))


def test_decoder_without_a_start_token_is_rejected() -> None:
    model = build("t5", SEED)
    assert t5.start_token(model) == 0
    model.config.decoder_start_token_id, model.generation_config.decoder_start_token_id = None, 3
    assert t5.start_token(model) == 3
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(Blip2rtError, match="decoder_start_token_id"):
        t5.start_token(model)
