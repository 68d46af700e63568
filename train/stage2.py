"""Stage 2, generative learning: `python -m train.stage2 --recipe recipes/nano/stage2.yaml` (paper section 3.3).

The Q-Former's output becomes a soft prompt for a frozen LLM; queries, Q-Former and projection learn from the LM loss.
The paper's finetunes (section 4) add an encoder that learns, a prompt, and questions that the queries read too.
"""

from __future__ import annotations

from .cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("stage2"))


from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip2rt.errors import OptionError
from blip2rt.modeling.adapters import add_adapters
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import init_from_bert, init_from_stage1, read_config

from .data.features import open_features
from .data.loaders import ImageBatch, LoaderSettings, batch_features, open_bad_samples, open_loader, to_device
from .data.readers import read_data
from .data.samples import Sample, first_answers
from .data.sampling import sample_images
from .dry_run import Plan, dry_run, further_faults, planned
from .evaluation.generation import GREEDY, Generator
from .loop.parallel import this_process
from .loop.run_folder import lock_folder
from .loop.trainer import Trainer, vision_peaks
from .model import (
    Start,
    changed_vision,
    learning,
    learning_vision,
    llm_config,
    qformer_config,
    start_fresh,
    start_from,
    started_config,
    vision_config,
    with_dropout,
    with_text_branch,
)
from .objectives.lm import Asked, Questions, Texts, check_llm, lm_loss, stands_alone, told_room
from .objectives.packing import PackedTexts
from .objectives.prefix_lm import PrefixTexts, SplitTexts, open_texts, prefix_lm_loss
from .recipe import Check, flat, option, parse
from .settings import NOT_NEGATIVE, POSITIVE, DataSettings, LlmSettings, TrainSettings


@dataclass(frozen=True)
class PrefixSettings:
    """Soft prompt of stage 2."""

    stage1: str = option(
        "",
        "stage-1 checkpoint to start from: ours, Hugging Face's or LAVIS'; without it BERT, as in the paper's "
        "ablation; beside start it gives the text branch",
        metavar="CHECKPOINT",
    )
    fresh_layers: int = option(0, "the Q-Former's last N layers start from BERT, not from stage 1", check=NOT_NEGATIVE)
    query_offsets: bool = option(False, "add a learned vector to each query before the projection; start has its own")
    normalize_prefix: bool = option(False, "LayerNorm behind the projection")
    question_to_qformer: bool = option(
        False, "the queries read the question too, or a caption's prompt, as in the paper's VQA finetune"
    )
    question_prompt: str = option("{}", "what they read of a question")
    projection_lr: float = option(1e-4, "peak learning rate of the projection", check=NOT_NEGATIVE)


@dataclass(frozen=True)
class TextSettings:
    """Texts of stage 2."""

    max_text_tokens: int = option(32, "tokens of one text, prompt and end included", check=POSITIVE)
    texts_per_image: int = option(1, "texts drawn of each image and packed behind one soft prompt", check=POSITIVE)
    learn_bos: bool = option(True, "the LM learns to say its bos token behind the last query, where no prompt follows")
    clean_answers: bool = option(
        False, 'answers lose capitals and punctuation, as captions do ("2:30 pm" becomes "2 30 pm")'
    )
    hidden_positions: float = option(
        0.0,
        "share of the image's positions that training does not see, drawn at every step",
        check=Check("0 to below 1", lambda value: 0 <= value < 1),
    )


@dataclass(frozen=True)
class Stage2Settings(TrainSettings):
    prefix: PrefixSettings = field(default_factory=PrefixSettings)
    llm: LlmSettings = field(default_factory=LlmSettings)
    text: TextSettings = field(default_factory=TextSettings)


def model_config(settings: Stage2Settings) -> Blip2Config:
    """The stage-2 model that the settings describe, or `start` changed by the fields that are given."""
    if settings.origin.start:
        return _learned(settings, _started(settings))
    prefix, qformer = settings.prefix, settings.qformer
    reads = prefix.question_to_qformer
    if prefix.stage1:
        seen = _seen(settings)
    else:
        vision = vision_config(settings.vision)
        seen = Blip2Config(
            vision=vision,
            qformer=qformer_config(qformer, vision.features, reads),
            qformer_init=qformer.qformer_init,
            learned_positions=qformer.learned_positions,
        )
    config = Blip2Config(
        stage=2,
        vision=seen.vision,
        qformer=replace(seen.qformer, text_branch=reads),
        llm=llm_config(settings.llm),
        qformer_init=seen.qformer_init,
        clean_captions=True,
        vision_trained=seen.vision_trained,
        vision_norm_eps=seen.vision_norm_eps,
        learned_positions=seen.learned_positions,
        question_input=reads,
        question_prompt=prefix.question_prompt,
        normalize_prefix=prefix.normalize_prefix,
        query_offsets=prefix.query_offsets,
        qformer_bits=qformer.qformer_bits,
        qformer_block=qformer.qformer_block,
        sources=settings.origin.sources,
    )
    return _learned(settings, config)


def _seen(settings: Stage2Settings) -> Blip2Config:
    """The config of `stage1`, whose encoder and Q-Former stage 2 goes on with, changed by the fields that are given."""
    given, source = settings.given, _stage1(settings)
    config = read_config(source.checkpoint, source.parts)
    vision = config.vision
    if not config.vision_trained:
        vision = vision_config(settings.vision) if "vision_source" in given else changed_vision(config, given)
    if given.get("queries", config.qformer.queries) != config.qformer.queries:
        raise OptionError(
            f"queries is {given['queries']}, and {source.checkpoint!r} has {config.qformer.queries}: give that"
        )
    positions = given.get("learned_positions", config.learned_positions)
    qformer = with_dropout(config.qformer, given)
    return replace(config, vision=vision, qformer=qformer, learned_positions=positions)


def _stage1(settings: Stage2Settings) -> Start:
    return Start(settings.prefix.stage1, settings.given)


def _started(settings: Stage2Settings) -> Blip2Config:
    """The config of `start`, changed by the fields that are given."""
    start = _start(settings)
    config = started_config(start, stage=2)
    if settings.prefix.question_to_qformer:
        return with_text_branch(config, start)
    if "question_to_qformer" in settings.given:
        return replace(config, question_input=False, qformer=replace(config.qformer, text_branch=False))
    return config


def _learned(settings: Stage2Settings, config: Blip2Config) -> Blip2Config:
    assert config.llm is not None
    check_llm(config, settings.text.texts_per_image)
    source = settings.origin.start or settings.prefix.stage1
    return learning_vision(config, settings.vision.train_vision, settings.data.cache_features, source)


def _start(settings: Stage2Settings) -> Start:
    return Start(settings.origin.start, settings.given, settings.prefix.stage1)


def build_model(settings: Stage2Settings, config: Blip2Config) -> Blip2:
    """A model from `start`, stage 1 or BERT; it has no image encoder where that is asked for cached features alone."""
    torch.manual_seed(settings.loop.batch.seed)
    model = Blip2(config, vision=settings.data.encodes)
    assert model.llm is not None and config.llm is not None
    if not torch.cuda.is_available():
        model.llm.set_attn_implementation("eager")  # type: ignore[operator]  # faster than sdpa's backward on CPUs
    if config.llm.lora_rank:
        add_adapters(model.llm, config.llm.lora_rank, config.llm.lora_alpha, config.llm.lora_layers)
    if settings.origin.start:
        start_from(model, _start(settings))
    elif settings.prefix.stage1:
        source = _stage1(settings)
        init_from_stage1(model, source.checkpoint, settings.prefix.fresh_layers, source.parts)
    else:
        init_from_bert(model)
        start_fresh(model, settings.qformer)
    return learning(model, settings.vision.train_vision)


def _texts(settings: Stage2Settings, config: Blip2Config) -> Texts | PrefixTexts:
    assert config.llm is not None
    text = settings.text
    return open_texts(
        config.llm, config.qformer.queries, text.max_text_tokens, learn_bos=text.learn_bos, cleans=text.clean_answers
    )


def peak_rates(settings: Stage2Settings, model: Blip2) -> dict[str, float]:
    """Peak rates of what does not learn at lr, by the beginnings of parameters' names."""
    encoder = model.vision if settings.vision.train_vision else None
    own = {"projection": settings.prefix.projection_lr, "llm.": settings.llm.lora_lr}
    return vision_peaks(encoder, settings.loop.optimizer) | own


@dataclass(frozen=True)
class Micro:
    """What the loss of one micro-batch is computed of."""

    images: ImageBatch
    texts: PackedTexts | SplitTexts
    share: float  # learned tokens here over the mean of all micro-batches and processes
    asked: Asked | None


class Stage2:
    """Model, data and the loss of one step."""

    def __init__(self, settings: Stage2Settings, record: dict[str, Any] | None = None) -> None:
        """record: all settings, to be kept, where there are more than these."""
        self.text, self.batch = settings.text, settings.loop.batch
        config = model_config(settings)
        texts = settings.text.texts_per_image
        loading = LoaderSettings(settings.data, settings.loop.batch, config.vision, texts, by_caption=False)
        self.loader = open_loader(loading, settings.loop.run.out)
        self.model = build_model(settings, config)
        llm, vision = self.model.llm, self.model.vision
        assert config.llm is not None and llm is not None
        self.texts = _texts(settings, config)
        splits = isinstance(self.texts, PrefixTexts)
        self.questions = Questions(self.model) if config.question_input else None
        self.lm_loss: Callable[..., dict[str, torch.Tensor]] = prefix_lm_loss if splits else lm_loss
        self.trainer = Trainer(self.model, settings.loop, peak_rates(settings, self.model), record or flat(settings))
        learns = [vision] if vision is not None and settings.vision.train_vision else []
        self.trainer.prepare([llm, self.model.qformer, *learns], frozen=[llm, None if learns else vision])
        self.dev = Dev(self, settings.data) if settings.data.dev_table else None

    def run(self) -> Path:
        """Train. Return the last checkpoint's folder."""
        return self.trainer.run(self.batches(), self.loss, self.dev.evaluate if self.dev else None)

    def batches(self) -> Iterator[tuple[int, list[Micro]]]:
        """Endless (step, micro-batches) from the trainer's step on."""
        for step, rows in self.loader.steps(self.trainer.step):
            rng = np.random.default_rng((self.batch.seed, step, 2, this_process().rank))
            packed = [self.pack(part.groups, rng) for part in rows]
            shares = this_process().loss_weights([len(texts.target) for texts, _ in packed])
            images = [to_device(part, self.trainer.device) for part in rows]
            yield (
                step,
                [
                    Micro(seen, texts, share, asked)
                    for seen, (texts, asked), share in zip(images, packed, shares, strict=True)
                ],
            )

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

    def loss(self, micro: Micro) -> dict[str, torch.Tensor]:
        """The LM loss, weighed by this micro-batch's share of all learned tokens."""
        features = batch_features(self.model, micro.images)
        losses = self.lm_loss(self.model, features, micro.texts, self.text.hidden_positions, micro.asked)
        return losses | {"loss": micro.share * losses["loss"]}


class Dev:
    """Judges unseen images: LM loss on their captions."""

    def __init__(self, stage: Stage2, data: DataSettings, count: int = 500) -> None:
        self.stage = stage
        bad = open_bad_samples(stage.trainer.out, data.max_bad)
        read = read_data(data.dev_table, data.images, bad)
        self.generator = Generator(stage.model)
        model = stage.model
        encoder = None if data.cache_features else model.vision
        with this_process().main_first():
            read, self.vision = open_features(read, model.config.vision, data.features, bad, encoder=encoder)
        most = 1 if stands_alone(model.config) else None
        self.groups, self.paths = [first_answers(group)[:most] for group in read.by_image()[:count]], read.paths

    def evaluate(self) -> dict[str, float]:
        """Measures by name; tells the log a few captions."""
        total, count = 0.0, 0
        for groups, features in self.parts():
            texts, asked = self.stage.pack(groups)
            loss = self.stage.lm_loss(self.stage.model, features, texts, asked=asked)["loss"]
            total += float(loss) * len(texts.target)
            count += len(texts.target)
        self.stage.trainer.log.samples(self.stage.trainer.step, self._samples())
        return {"loss": total / max(count, 1)}

    def parts(self) -> Iterator[tuple[list[list[Sample]], torch.Tensor]]:
        """Samples and vision_features (b, N, C) of a few images at a time."""
        for start in range(0, len(self.groups), 20):
            images = list(range(start, min(start + 20, len(self.groups))))
            yield self.groups[start : start + 20], self.vision.get(images).to(self.stage.trainer.device)

    def _samples(self) -> dict[str, str]:
        """Greedy captions of a few images, always the same ones."""
        images = sample_images(len(self.groups))
        features = self.vision.get(images).to(self.stage.trainer.device)
        captions = self.generator.captions(features, **GREEDY)
        return {self.paths[image].name: caption for image, caption in zip(images, captions, strict=True)}


def plan(settings: Stage2Settings) -> Plan:
    """What a dry run describes."""
    config = model_config(settings)
    return Plan(
        config=config,
        start=_start(settings),
        loop=settings.loop,
        data=settings.data,
        train_vision=settings.vision.train_vision,
        peaks=lambda model: peak_rates(settings, model),
        texts=settings.text.texts_per_image,
        tokens=settings.text.max_text_tokens,
        room=lambda samples: told_room(_texts(settings, config), samples),
    )


def main(argv: list[str] | None = None) -> int:
    def work() -> object:
        settings = parse(Stage2Settings, argv, __doc__ or "", lambda wrong: further_faults(wrong, plan))
        if settings.loop.run.dry_run:
            return dry_run(planned(settings, plan))
        with lock_folder(settings.loop.run.out, flat(settings)):
            return Stage2(settings).run()

    return run_main(lambda: print(work()), argv=argv)
