"""A training step beside the reference's way to compute the same losses: `python -m benchmarks.train`.

Stage 1: `stage1_losses` (the image is read once, its keys and values serve all three losses, and ITG reuses the
queries' keys and values of ITC) beside three independent forward passes, as in tests/train/losses, which also compares
the gradients. Stage 2: `lm_loss` (logits of learned positions only, a few rows at a time; --texts of an image behind
one soft prompt) beside LAVIS' way, a sample for each text and a language model's own loss over all positions. Steps
alternate on one model with one batch, at equal losses; processor time is compared. The language model is OPT's, with
random weights. LAVIS itself is not run: it needs an old transformers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch

from blip2rt.command_line import Parser, run, whole
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig
from blip2rt_train.loop.memory import keep_freed_memory
from blip2rt_train.loop.trainer import autocast_dtype
from blip2rt_train.objectives.lm import lm_loss, query_output
from blip2rt_train.objectives.packing import PackedTexts, Tokens, pack
from blip2rt_train.objectives.stage1 import (
    LossSettings,
    TextBatch,
    hard_negatives,
    itc_loss,
    itg_loss,
    itm_loss,
    next_tokens,
    similarity,
    stage1_losses,
)
from blip2rt_train.objectives.stage1_batch import WholeBatch

_BERT_BASE: dict[str, Any] = {"hidden_size": 768, "layers": 12, "heads": 12, "intermediate_size": 3072}
PAPER = QFormerConfig(**_BERT_BASE, queries=32, vision_width=1408, dropout=0.0, query_gain=None)
NANO = QFormerConfig(dropout=0.0)
TINY = QFormerConfig(32, 2, 2, 48, queries=4, vision_width=16, dropout=0.0)
GEOMETRIES: dict[str, tuple[QFormerConfig, int]] = {"paper": (PAPER, 257), "nano": (NANO, 81), "tiny": (TINY, 9)}
# OPT-125M; OPT-2.7B with two of its layers.
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "nano": {},
    "tiny": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    },
    "paper": {
        "hidden_size": 2560,
        "word_embed_proj_dim": 2560,
        "ffn_dim": 10240,
        "num_attention_heads": 32,
        "num_hidden_layers": 2,
    },
}
Losses = dict[str, torch.Tensor]


def _normalized_features(model: Blip2) -> Any:
    """Inside, the LayerNorm's output is what keys and values are computed of, as in LAVIS."""

    def vision_kv(vision_features: torch.Tensor) -> list[Any]:
        seen = model.vision_norm(vision_features)
        return model.qformer.vision_kv(seen + model.vision_positions if model.config.learned_positions else seen)

    return mock.patch.object(model, "vision_kv", vision_kv)


def itc_pass(model: Blip2, vision_features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text separately: the loss, and the similarities (b, b)."""
    query_output = model.query_output(vision_features)
    sim = similarity(model.image_embeds(query_output), model.text_embeds(text.token_ids, text.text_mask))
    return itc_loss(sim, model.temperature, text.image_ids), sim


def itm_pass(model: Blip2, vision_features: torch.Tensor, text: TextBatch, sim: torch.Tensor) -> torch.Tensor:
    """Matching pairs, wrong images, wrong texts: 3b images with 3b texts under the bidirectional mask."""
    wrong_image, wrong_text = hard_negatives(sim, model.temperature, text.image_ids)
    images = torch.cat((vision_features, vision_features[wrong_image], vision_features))
    token_ids = torch.cat((text.token_ids, text.token_ids, text.token_ids[wrong_text]))
    text_mask = torch.cat((text.text_mask, text.text_mask, text.text_mask[wrong_text]))
    return itm_loss(model.itm_logits(images, token_ids, text_mask).float(), len(vision_features))[0]


def itg_pass(model: Blip2, vision_features: torch.Tensor, text: TextBatch, dec_token_id: int) -> torch.Tensor:
    """[queries ; text] as one sequence under the multimodal causal mask."""
    qformer = model.qformer
    decoder_ids = text.token_ids.clone()
    decoder_ids[:, 0] = dec_token_id
    batch, length = decoder_ids.shape
    count = qformer.config.queries
    mask = torch.ones(count + length, count + length, dtype=torch.bool, device=decoder_ids.device).tril()
    mask[:, :count] = True
    seen = torch.cat((text.text_mask.new_ones(batch, count), text.text_mask), 1).bool()
    queries, words = qformer.embed_queries(batch), qformer.embed_text(decoder_ids)
    for layer, image in zip(qformer.layers, model.vision_kv(vision_features), strict=True):
        queries, words, _ = layer(queries, words, (mask & seen[:, None, :]).unsqueeze(1), image, None)
    states, targets = next_tokens(words, decoder_ids, text.text_mask)
    return itg_loss(model.lm_head(states, qformer.word_embeddings.weight), targets)


def independent_losses(
    model: Blip2,
    vision_features: torch.Tensor,
    text: TextBatch,
    settings: LossSettings,
    _batch: WholeBatch | None = None,
) -> Losses:
    """ITC, ITM and ITG with a full forward pass each; they share only the similarities for ITM's negatives. A batch on
    one process only."""
    with _normalized_features(model):
        itc, sim = itc_pass(model, vision_features, text)
        itm = itm_pass(model, vision_features, text, sim)
        itg = itg_pass(model, vision_features, text, settings.dec_token_id)
    return {"loss": itc + itm + itg, "itc": itc, "itm": itm, "itg": itg}


def build(geometry: str) -> Blip2:
    qformer, positions = GEOMETRIES[geometry]
    vision = VisionConfig(positions=positions, features=qformer.vision_width)
    config = Blip2Config(stage=1, vision=vision, qformer=qformer, learned_positions=geometry == "nano")
    return Blip2(config).train()


def random_batch(model: Blip2, batch: int, tokens: int) -> tuple[torch.Tensor, TextBatch]:
    """Features of different images, and texts of half of `tokens` to `tokens`."""
    vision = model.config.vision
    features = torch.randn(batch, vision.positions, vision.features)
    lengths = torch.randint(tokens // 2, tokens + 1, (batch,))
    lengths[0] = tokens
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    ids = torch.randint(1000, model.config.qformer.vocab_size - 1, (batch, tokens)) * mask
    return features, TextBatch(ids, mask, torch.arange(batch))


def compare_stage1(
    geometry: str, batch: int, tokens: int, precision: str, repeat: int, device: str = "cpu"
) -> tuple[float, float]:
    """Return the median seconds of a step (losses, gradients, AdamW): independent and shared. CPU: processor time."""
    model = build(geometry)
    features, text = random_batch(model, batch, tokens)
    model.to(device)
    features, text = features.to(device), TextBatch(*(value.to(device) for value in vars(text).values()))
    settings = LossSettings(model.config.qformer.vocab_size - 1)
    ways = [partial(way, model, features, text, settings, WholeBatch()) for way in (independent_losses, stage1_losses)]
    return alternate(model, [lambda way=way: way()["loss"] for way in ways], precision, repeat)  # type: ignore[misc]


def compare_stage2(
    geometry: str, batch: int, tokens: int, precision: str, repeat: int, texts: int = 1, device: str = "cpu"
) -> tuple[float, float]:
    """The same for stage 2: a language model's own loss, and ours. texts: of each image."""
    from transformers import OPTConfig, OPTForCausalLM

    qformer, positions = GEOMETRIES[geometry]
    text: Any = OPTConfig(**LANGUAGE_MODELS[geometry])
    text._attn_implementation = "eager"  # as training sets it on CPUs
    llm = OPTForCausalLM(text).requires_grad_(False).eval().to(autocast_dtype(precision))
    vision = VisionConfig(positions=positions, features=qformer.vision_width)
    qformer = replace(qformer, text_branch=False)
    config = Blip2Config(stage=2, vision=vision, qformer=qformer, learned_positions=geometry == "nano")
    model = Blip2(config, None, llm).train()
    llm.eval()  # its dropout would differ between the ways
    features, groups = torch.randn(batch, positions, qformer.vision_width), []
    for lengths in torch.randint(tokens // 2, tokens + 1, (batch, texts)).tolist():
        groups.append([Tokens([2, *torch.randint(10, text.vocab_size, (n,)).tolist()], prompt=1) for n in lengths])
    packed = pack(groups, qformer.queries, 1)
    samples = [[learned] for group in groups for learned in group]
    token_ids = pack(samples, qformer.queries, 1).token_ids.to(device)
    packed = PackedTexts(*(value.to(device) for value in vars(packed).values()))
    model.to(device)
    features = features.to(device)

    def reference() -> torch.Tensor:
        """LAVIS' blip2_opt.py: labels over the whole sequence, -100 where nothing is learned."""
        with _normalized_features(model):
            prefix = model.prefix_embeds(query_output(model, features.repeat_interleave(texts, 0), 0.0, None))
        words = llm.get_input_embeddings()(token_ids)
        mask = torch.cat((token_ids.new_ones(prefix.shape[:2]), (token_ids != 1).long()), 1)
        labels = torch.full_like(mask, -100)
        for row, (learned,) in enumerate(samples):
            first = qformer.queries + learned.prompt
            labels[row, first : qformer.queries + len(learned.ids)] = torch.tensor(learned.ids[learned.prompt :])
        embeds = torch.cat((prefix.to(words.dtype), words), 1)
        loss: torch.Tensor = llm(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss
        return loss

    ways = [reference, lambda: lm_loss(model, features, packed)["loss"]]
    return alternate(model, ways, precision, repeat)


def alternate(
    model: Blip2, losses: Sequence[Callable[[], torch.Tensor]], precision: str, repeat: int
) -> tuple[float, float]:
    """Return the median seconds of a step of each of two losses, which must be equal."""
    kind = next(model.parameters()).device.type
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    dtype = autocast_dtype(precision)

    def clock() -> float:
        if kind == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def step(loss: Callable[[], torch.Tensor]) -> float:
        started = clock()
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return clock() - started

    with torch.no_grad(), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
        torch.manual_seed(0)
        first = float(losses[0]())
        torch.manual_seed(0)
        torch.testing.assert_close(float(losses[1]()), first, rtol=1e-4 if dtype == torch.float32 else 3e-2, atol=0.0)
    for each in losses:
        step(each)
    seconds = [[step(each) for each in losses] for _ in range(repeat)]
    reference, ours = (statistics.median(column) for column in zip(*seconds, strict=True))
    return reference, ours


def main(argv: list[str] | None = None) -> int:
    return run("python -m benchmarks.train", lambda: _run(_parser().parse_args(argv)))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    names = list(GEOMETRIES)
    parser.add_argument("--geometry", nargs="*", choices=names, default=names[:2], help="sizes of the models")
    pairs = "pairs in a batch, one number for each geometry"
    parser.add_argument("--batch", type=whole(1), nargs="*", default=[4, 32], metavar="N", help=pairs)
    parser.add_argument("--tokens", type=whole(1), default=16, metavar="N", help="tokens of the longest text")
    parser.add_argument("--stage", type=int, nargs="*", choices=(1, 2), default=[1, 2], help="stages to compare")
    parser.add_argument("--texts", type=whole(1), default=1, metavar="N", help="texts of each image in stage 2")
    kinds = ["fp32", "bf16"]
    parser.add_argument("--precision", nargs="*", choices=kinds, default=kinds, help="precisions to compare")
    parser.add_argument("--repeat", type=whole(1), default=9, metavar="N", help="steps of each")
    return parser


def _run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    for geometry, batch in zip(args.geometry, args.batch, strict=True):
        for precision in args.precision:
            for stage in args.stage:
                compare = compare_stage1 if stage == 1 else partial(compare_stage2, texts=args.texts)
                reference, ours = compare(geometry, batch, args.tokens, precision, args.repeat)
                texts = f" x {args.texts} texts" if stage == 2 else ""
                case = f"stage {stage}, {geometry}, batch {batch}{texts}, {args.tokens} tokens, {precision}"
                times = f"reference {reference:.3f} s, ours {ours:.3f} s, {reference / ours:.2f} x"
                print(f"{case}: {times}, {batch / ours:.1f} images/s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
