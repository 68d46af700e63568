"""Packed texts get the hidden states that they would get alone behind their prefix."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from tests.seeds import new_seed
from tests.train.arguments import sizes
from train.objectives.packing import Tokens, pack


def tiny_llama() -> torch.nn.Module:
    size = sizes("hidden_size=32 intermediate_size=48 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2")
    config = LlamaConfig(vocab_size=97, **size)
    return LlamaForCausalLM(config)


def tiny_opt() -> torch.nn.Module:
    config = OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    )
    return OPTForCausalLM(config)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_opt])
def test_packed_loss_equals_separate_losses(build: object, attention: str) -> None:
    seed = new_seed()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    llm = build().eval()  # type: ignore[operator]
    llm.set_attn_implementation(attention)
    prefix = torch.randn(3, 5, 32)
    groups = [
        [
            Tokens([rng.randrange(97) for _ in range(rng.randint(2, 7))], prompt=rng.randint(0, 1))
            for _ in range(rng.randint(1, 4))
        ]
        for _ in range(3)
    ]
    packed = pack(groups, prefix=5, pad_token_id=0)
    embeds = torch.cat((prefix, llm.get_input_embeddings()(packed.token_ids)), 1)
    hidden = llm.base_model(
        inputs_embeds=embeds, attention_mask=packed.mask, position_ids=packed.position_ids, use_cache=False
    ).last_hidden_state
    logits = llm.get_output_embeddings()(hidden.flatten(0, 1)[packed.source])
    together = F.cross_entropy(logits, packed.target, reduction="none")

    alone = []
    for row, group in enumerate(groups):
        for text in group:
            ids = torch.tensor([text.ids])
            out = llm(inputs_embeds=torch.cat((prefix[row : row + 1], llm.get_input_embeddings()(ids)), 1)).logits[0]
            losses = F.cross_entropy(out[4 : 4 + len(text.ids)], ids[0], reduction="none")
            alone.append(losses[text.prompt :])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
