"""Every loss of both stages against float64 NumPy (tests/tiny/numpy_blip2.py) on whole models, and what learns. The
language model of a reference is transformers' own, in float64, one text at a time."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.llm import LlmConfig
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig
from blip2rt_train.objectives.lm import lm_loss
from blip2rt_train.objectives.packing import Tokens, pack
from blip2rt_train.objectives.prefix_lm import SplitTexts, prefix_lm_loss
from blip2rt_train.objectives.stage1 import LossSettings, TextBatch, stage1_losses
from blip2rt_train.objectives.stage1_batch import WholeBatch
from tests.seeds import new_seed
from tests.tiny.blip2 import build as build_blip2
from tests.tiny.blip2 import shake
from tests.tiny.numpy_blip2 import NumpyBlip2
from tests.train.arguments import sizes

QUERIES, POSITIONS, FEATURES, VOCAB = 3, 5, 12, 41
IMAGE_IDS = [0, 1, 0, 2, 3]


@pytest.fixture
def rng() -> np.random.Generator:
    seed = new_seed()
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def build(stage: int, paper: bool, llm: str = "") -> Blip2:
    """A random model. paper: queries share the text's LayerNorm; no learned positions, no norm of the prefix."""
    size = sizes("hidden_size=16 layers=3 heads=2 intermediate_size=20 max_positions=12") | {"vocab_size": VOCAB}
    size |= {"queries": QUERIES, "vision_width": FEATURES, "dropout": 0.0, "query_gain": None if paper else 3.0}
    qformer, vision = (
        QFormerConfig(**size, text_branch=stage == 1),
        VisionConfig(positions=POSITIONS, features=FEATURES),
    )
    ours = dict.fromkeys(("learned_positions", "normalize_prefix"), not paper)
    config = Blip2Config(stage, vision, qformer, LlmConfig(source=llm) if llm else None, embed_dim=8, **ours)
    model = build_blip2(config, vision=False)
    shake(model).train()  # the frozen LLM's weights too
    if stage == 1:  # a temperature near 0 makes losses too large for 1e-5
        torch.nn.init.constant_(model.temperature, random.uniform(0.05, 0.1))
    return model


def batch(rng: np.random.Generator) -> tuple[torch.Tensor, list[np.ndarray], TextBatch]:
    images = torch.randn(len(IMAGE_IDS), POSITIONS, FEATURES)
    texts = [rng.integers(1, VOCAB - 1, rng.integers(3, 8)) for _ in IMAGE_IDS]
    ids = torch.zeros(len(texts), 8, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), 1
    return images, texts, TextBatch(ids, mask, torch.tensor(IMAGE_IDS))


@pytest.mark.parametrize("paper", [True, False])
def test_stage1_losses_equal_numpy(paper: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(1, paper)
    reference, (images, texts, text_batch) = NumpyBlip2(model), batch(rng)
    drawn: list[torch.Tensor] = []

    def most_likely(weights: torch.Tensor, count: int, generator: object = None) -> torch.Tensor:
        drawn.append(weights)
        return weights.argmax(1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", most_likely)
    got = stage1_losses(model, images, text_batch, LossSettings(VOCAB - 1), WholeBatch())
    seen, ids = images.double().numpy(), np.array(IMAGE_IDS)
    sim = reference.similarity(seen, texts)
    weights = reference.negative_weights(sim, ids)
    for mine, theirs in zip(drawn, weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-4)
    wrong = [mine.argmax(1).numpy() for mine in drawn]
    assert got["itc"].item() == pytest.approx(reference.itc(sim, ids), abs=1e-5)
    assert got["itm"].item() == pytest.approx(reference.itm(seen, texts, *wrong), abs=1e-5)
    assert got["itg"].item() == pytest.approx(reference.itg(seen, texts, VOCAB - 1), abs=1e-5)


@pytest.mark.parametrize("paper", [True, False])
def test_stage1_gradients_are_those_of_the_losses(
    paper: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By central differences in random directions: shared passes detach nothing that learns."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, *_, **__: weights.argmax(1, keepdim=True))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # ITG moves the queries' gradients by 1 % only
    model, (images, _, text) = build(1, paper).double(), batch(rng)
    parameters, step = list(model.parameters()), 1e-5

    def loss() -> torch.Tensor:
        return stage1_losses(model, images.double(), text, LossSettings(VOCAB - 1), WholeBatch())["loss"]

    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in random.sample(list(zip(parameters, gradients, strict=True)), 40):
        ways, kept = (torch.randn_like(gradient), gradient), parameter.detach().clone()
        direction = sum(way / max(way.norm(), 1e-9) for way in ways)
        values = []
        for sign in (1, -1):
            parameter.data = kept + sign * step * direction
            values.append(float(loss().detach()))
        parameter.data = kept
        found = (values[0] - values[1]) / (2 * step)
        assert found == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("paper", [True, False])
def test_lm_loss_equals_numpy(paper: bool, rng: np.random.Generator, tmp_path: Path) -> None:
    size = sizes("hidden_size=16 ffn_dim=24 num_hidden_layers=2 num_attention_heads=2 word_embed_proj_dim=16")
    config = transformers.OPTConfig(vocab_size=VOCAB, **size, max_position_embeddings=40, dropout=0.1)
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path)
    model = build(2, paper, str(tmp_path))
    groups = [
        [Tokens(rng.integers(1, VOCAB, rng.integers(2, 6)).tolist(), int(rng.integers(0, 2))) for _ in range(count)]
        for count in (1, 3)
    ]
    images = torch.randn(2, POSITIONS, FEATURES)
    reference, llm = NumpyBlip2(model), copy.deepcopy(model.llm).double()
    loss = lm_loss(model, images, pack(groups, QUERIES, 0))["loss"]
    want: list[float] = []
    for image, group in zip(images.double().numpy(), groups, strict=True):
        for text in group:
            logits = llm(inputs_embeds=embeds(llm, reference.prefix_embeds(image), text.ids)).logits[0, QUERIES - 1 :]
            learned = slice(text.prompt, len(text.ids))
            want += cross_entropy(logits[learned], torch.tensor(text.ids[learned]), reduction="none").tolist()
    assert_loss(model, loss, want)


@pytest.mark.parametrize("tied", [True, False])
def test_prefix_lm_loss_equals_numpy(tied: bool, rng: np.random.Generator, tmp_path: Path) -> None:
    size = sizes("d_model=16 d_kv=8 d_ff=24 num_layers=2 num_heads=2 decoder_start_token_id=0")
    size |= sizes("relative_attention_num_buckets=8 relative_attention_max_distance=12") | {"vocab_size": VOCAB}
    config = transformers.T5Config(**size, feed_forward_proj="gated-gelu", tie_word_embeddings=tied)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    model = build(2, True, str(tmp_path))
    images = torch.randn(2, POSITIONS, FEATURES)
    rows = [
        (
            image,
            rng.integers(1, VOCAB, rng.integers(1, 5)).tolist(),
            rng.integers(1, VOCAB, rng.integers(1, 6)).tolist(),
        )
        for image in (0, 1, 1)
    ]
    texts = split_texts(rows)
    reference, t5 = NumpyBlip2(model), copy.deepcopy(model.llm).double()
    loss = prefix_lm_loss(model, images, texts)["loss"]
    want: list[float] = []
    for image, given, learned in rows:
        inputs = embeds(t5, reference.prefix_embeds(images[image].double().numpy()), given)
        logits = t5(inputs_embeds=inputs, decoder_input_ids=torch.tensor([[0, *learned[:-1]]])).logits[0]
        want += cross_entropy(logits, torch.tensor(learned), reduction="none").tolist()
    assert_loss(model, loss, want)


def embeds(llm: Any, prefix: np.ndarray, ids: list[int]) -> torch.Tensor:
    """prefix (P,D) and tokens -> (1,P+S,D) in float64: one text, without padding"""
    return torch.cat((torch.from_numpy(prefix), llm.get_input_embeddings()(torch.tensor(ids))))[None]


def split_texts(rows: list[tuple[int, list[int], list[int]]]) -> SplitTexts:
    given, learned = (torch.full((len(rows), 6), fill) for fill in (7, -100))
    mask = torch.zeros(len(rows), 6, dtype=torch.long)
    for row, (_, first, second) in enumerate(rows):
        given[row, : len(first)], mask[row, : len(first)] = torch.tensor(first), 1
        learned[row, : len(second)] = torch.tensor(second)
    return SplitTexts(torch.tensor([row[0] for row in rows]), given, mask, learned)


def assert_loss(model: Blip2, loss: torch.Tensor, want: list[float]) -> None:
    """Assert that a loss is the mean of `want`, and that only the query branch learns from it."""
    assert loss.item() == pytest.approx(np.mean(want), abs=1e-5)
    loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(model.trained_state())
    assert not any(parameter.requires_grad for parameter in model.llm.parameters())
