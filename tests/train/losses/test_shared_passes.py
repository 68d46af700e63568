"""Stage 1's shared passes give the losses and gradients of three forward passes that share nothing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.train import independent_losses
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig
from tests.seeds import new_seed
from tests.tiny.blip2 import shake
from tests.train.arguments import sizes
from train.objectives.stage1 import TextBatch, stage1_losses

VOCAB, BATCH, LENGTH = 50, 6, 9


def build(paper: bool) -> Blip2:
    qformer = QFormerConfig(
        **sizes("hidden_size=24 layers=4 heads=3 intermediate_size=40 queries=4 vision_width=20 max_positions=16"),
        vocab_size=VOCAB,
        dropout=0.0,
        query_gain=None if paper else 3.0,
    )
    vision = VisionConfig(positions=7, features=20)
    model = Blip2(Blip2Config(vision=vision, qformer=qformer, embed_dim=8, learned_positions=not paper))
    shake(model)
    torch.nn.init.constant_(model.temperature, 0.1)
    return model.double().train()


@pytest.mark.parametrize("paper", [True, False])
def test_shared_pass_has_gradients_of_separate_passes(paper: bool) -> None:
    seed = new_seed()
    torch.manual_seed(seed)
    model = build(paper)
    features = torch.randn(BATCH, 7, 20, dtype=torch.double)
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (BATCH, 1))).long()
    ids = torch.randint(1, VOCAB - 1, (BATCH, LENGTH)) * mask
    text = TextBatch(ids, mask, torch.tensor([0, 1, 0, 2, 3, 4]))  # two texts of one image
    found = []
    for losses in (stage1_losses, independent_losses):
        torch.manual_seed(seed)  # the same negatives
        computed = losses(model, features, text, VOCAB - 1)
        model.zero_grad()
        computed["loss"].backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        found.append(({name: computed[name].detach() for name in ("loss", "itc", "itm", "itg")}, gradients))
    (shared, shared_gradients), (apart, apart_gradients) = found
    torch.testing.assert_close(shared, apart, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared_gradients, apart_gradients, atol=1e-5, rtol=0)
    still = [name for name, g in apart_gradients.items() if g.abs().max() < 1e-4 and not name.endswith("key.bias")]
    assert not still  # keys' biases move all scores of a row alike
