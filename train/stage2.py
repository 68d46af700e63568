"""Stage 2, generative learning: `python -m train.stage2 --recipe recipes/nano/stage2.yaml` (paper section 3.3).

The Q-Former's output becomes a soft prompt for a frozen LLM; queries, Q-Former and projection learn from the LM loss
(objectives/lm.py, of an encoder-decoder objectives/prefix_lm.py). The paper's finetunes (section 4) add an encoder that
is trained too, a prompt, and questions that the queries read.
"""

from .cli import run_command

if __name__ == "__main__":  # by name, so that an import error below becomes one line
    raise SystemExit(run_command("stage2"))


from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip2rt.modeling import streaming
from blip2rt.modeling.adapters import add_adapters
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.row_noise import RowNoise
from blip2rt.modeling.vision import VisionEncoder

from .data.loaders import ImageBatch, LoaderSettings, batch_features, open_loader
from .data.samples import Sample, first_answers
from .evaluation.generation import GREEDY, Generator
from .loop.parallel import this_process
from .loop.trainer import vision_peaks
from .model import (
    StartingPoint,
    fresh_config,
    initialize_fresh,
    language_model,
    open_checkpoint,
    training_mode,
    with_trained_vision,
)
from .objectives.lm import LmTexts, QformerTexts, QformerTokenizer, check_llm, truncation_report
from .objectives.packing import PackedTexts
from .objectives.prefix_lm import PrefixLmTexts, SplitTexts, open_texts
from .plan import Plan
from .progress import announce, bar
from .recipe import flat
from .settings import DataSettings
from .stage import log_captions, open_dev, open_trainer, stage_main, trained_encoder
from .stage_settings import Stage2Settings as Stage2Settings
from .stage_settings import TextSettings
from .warm_start import from_checkpoint, stage1_config, with_text_branch


def starting_point(settings: Stage2Settings) -> StartingPoint:
    """The stage-2 model that the settings describe, or `start` changed by the given fields."""
    given, prefix = settings.given, settings.prefix
    start, stage1 = (open_checkpoint(source, given) for source in (settings.origin.start, prefix.stage1))
    if start:
        point = replace(from_checkpoint(start, given, stage=2), stage1=stage1)
        if prefix.question_to_qformer:
            point = with_text_branch(point, given)
        elif "question_to_qformer" in given:
            qformer = replace(point.config.qformer, text_branch=False)
            point = replace(point, config=replace(point.config, question_input=False, qformer=qformer))
    else:
        point = _new_stage2(settings, stage1)
    assert point.language_model is not None
    check_llm(point.language_model)
    source, cached = settings.origin.start or prefix.stage1, settings.data.cache_features
    return replace(point, config=with_trained_vision(point.config, settings.vision.train_vision, cached, source))


def _new_stage2(settings: Stage2Settings, stage1: Checkpoint | None) -> StartingPoint:
    """A stage-2 model with the encoder and Q-Former of `stage1`, or fresh ones."""
    prefix, qformer, language = settings.prefix, settings.qformer, language_model(settings.llm)
    if stage1:
        base, bert = stage1_config(stage1, settings.vision, settings.given), stage1.bert
    else:
        base, bert = fresh_config(settings, text_branch=prefix.question_to_qformer)
    config = Blip2Config(
        stage=2,
        vision=base.vision,
        qformer=replace(base.qformer, text_branch=prefix.question_to_qformer),
        llm=language.config,
        qformer_init=base.qformer_init,
        clean_captions=True,
        vision_trained=base.vision_trained,
        vision_norm_eps=base.vision_norm_eps,
        learned_positions=base.learned_positions,
        question_input=prefix.question_to_qformer,
        normalize_prefix=prefix.normalize_prefix,
        qformer_bits=qformer.qformer_bits,
        qformer_block=qformer.qformer_block,
        sources=settings.origin.sources,
    )
    return StartingPoint(config, bert, language, stage1=stage1)


def build_model(settings: Stage2Settings, point: StartingPoint) -> Blip2:
    """A model from `start`, stage 1 or BERT; without its image encoder if that is only used for cached features."""
    assert point.language_model is not None
    torch.manual_seed(settings.loop.batch.seed)
    encoder = VisionEncoder(point.config.vision) if settings.data.encodes else None
    shown: streaming.Shown = iter
    if this_process().main:
        announce(f"loading the language model {point.language_model.config.source}")
        shown = partial(bar, desc="tensors", leave=False)
    llm: Any = point.language_model.load(shown=shown)
    if not torch.cuda.is_available():
        llm.set_attn_implementation("eager")  # faster than sdpa's backward on CPUs
    model, lora = Blip2(point.config, encoder, llm), point.language_model.config
    if lora.lora_rank:
        add_adapters(llm, lora.lora_rank, lora.lora_alpha, lora.lora_layers)
    if point.start:
        point.load_start(model)
    elif point.stage1:
        point.load_stage1(model)
    else:
        point.bert.initialize(model)
        initialize_fresh(model, settings.qformer)
    return training_mode(model, settings.vision.train_vision)


def _texts(text: TextSettings, point: StartingPoint) -> LmTexts | PrefixLmTexts:
    assert point.language_model is not None
    queries, length = point.config.qformer.queries, text.max_text_tokens
    return open_texts(point.language_model, queries, length, learn_bos=text.learn_bos, clean_answers=text.clean_answers)


def peak_rates(settings: Stage2Settings, model: Blip2) -> dict[str, float]:
    """Peak learning rates that differ from lr, by prefixes of parameter names."""
    rates = vision_peaks(trained_encoder(model, settings.vision.train_vision), settings.loop.optimizer)
    if "projection_lr" in settings.given:
        rates["projection"] = settings.prefix.projection_lr
    return rates | {"llm.": settings.llm.lora_lr}


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of the loss of one micro-batch."""

    images: ImageBatch
    texts: PackedTexts | SplitTexts
    share: float  # learned tokens here over the mean of all micro-batches and processes
    questions: QformerTexts | None
    noise: RowNoise  # of its rows, for dropout


class Stage2:
    """Model, data and the loss of one step."""

    def __init__(self, settings: Stage2Settings, record: dict[str, Any] | None = None) -> None:
        """record: all settings of the training, if there are more than these."""
        self.text = settings.text
        loop = settings.loop
        data = settings.data
        self.seed = loop.batch.seed
        self.point = starting_point(settings)
        config = self.point.config
        texts = settings.text.texts_per_image
        loading = LoaderSettings(data, loop.batch, config.vision, texts, by_caption=False)
        self.loader = open_loader(loading, loop.run.out)
        self.model = build_model(settings, self.point)
        self.texts = _texts(settings.text, self.point)
        self.lm_loss: Callable[..., dict[str, torch.Tensor]] = self.texts.loss
        self.questions = QformerTokenizer(config, self.point.bert) if config.question_input else None
        self.trainer = open_trainer(self.model, plan(settings, self.point), record or flat(settings), self.model.llm)
        self.dev = Dev(self, data) if data.dev_table else None

    def run(self) -> Path:
        """Train. Return the last checkpoint's folder."""
        return self.trainer.run(self.batches(), self.loss, self.dev.evaluate if self.dev else None)

    def batches(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        """Endless (step, micro-batches) from the trainer's step on."""
        for step, rows in self.loader.steps(self.trainer.step):
            numbers = [part.tolist() for part in self.trainer.micro_rows()]
            rngs = [[np.random.default_rng((self.seed, step, 2, row)) for row in part] for part in numbers]
            packed = [self.pack(part.groups, own) for part, own in zip(rows, rngs, strict=True)]
            counts = [len(texts.target) for texts, _ in packed]
            shares, self.trainer.tokens = this_process().loss_weights(counts), sum(counts)
            images = [part.to(self.trainer.device) for part in rows]
            parts = zip(images, packed, shares, self.trainer.noise(step), strict=True)
            yield step, [MicroBatch(image, text[0], share, text[1], noise) for image, text, share, noise in parts]

    def pack(
        self, groups: list[list[Sample]], rngs: Sequence[np.random.Generator] = ()
    ) -> tuple[PackedTexts | SplitTexts, QformerTexts | None]:
        """The texts of each image for the LLM, an encoder-decoder's split by `rngs`, and the texts that the queries
        read, if they do: every text then has its own soft prompt."""
        device, questions = self.trainer.device, None
        if self.questions is not None:
            questions = self.questions.batch(groups, device)
            rngs = [rng for rng, group in zip(rngs, groups, strict=False) for _ in group]
            groups = [[sample] for group in groups for sample in group]
        return self.texts.batch(groups, device, rngs), questions

    def loss(self, micro: MicroBatch) -> dict[str, torch.Tensor]:
        """The LM loss, weighted by this micro-batch's share of all learned tokens."""
        features = batch_features(self.model, micro.images)
        hidden = self.text.hidden_positions
        losses = self.lm_loss(self.model, features, micro.texts, hidden, micro.questions, micro.noise)
        return losses | {"loss": micro.share * losses["loss"]}


class Dev:
    """Evaluation on unseen images: the LM loss of their captions."""

    def __init__(self, stage: Stage2, data: DataSettings, count: int = 500) -> None:
        self.stage = stage
        read, self.vision = open_dev(data, stage.model, stage.trainer.out, captions=False)
        assert stage.point.language_model is not None
        self.generator = Generator(stage.model, stage.point.language_model, stage.point.bert)
        self.groups, self.paths = [first_answers(group) for group in read.by_image()[:count]], read.paths

    def evaluate(self) -> dict[str, float]:
        """Measures by name; logs a few greedy captions."""
        total, count = 0.0, 0
        for groups, features in self.parts():
            texts, questions = self.stage.pack(groups)
            loss = self.stage.lm_loss(self.stage.model, features, texts, questions=questions)["loss"]
            total += float(loss) * len(texts.target)
            count += len(texts.target)
        paths = self.paths[: len(self.groups)]
        log_captions(self.stage.trainer, paths, self.vision, lambda seen: self.generator.captions(seen, **GREEDY))
        return {"loss": total / max(count, 1)}

    def parts(self) -> Iterator[tuple[list[list[Sample]], torch.Tensor]]:
        """Samples and vision_features (b, N, C) of a few images at a time."""
        for start in range(0, len(self.groups), 20):
            images = list(range(start, min(start + 20, len(self.groups))))
            yield self.groups[start : start + 20], self.vision.get(images).to(self.stage.trainer.device)


def plan(settings: Stage2Settings, point: StartingPoint | None = None) -> Plan:
    """The training in numbers; point: where it starts, if that is known."""
    start = point or starting_point(settings)
    return Plan(
        point=start,
        loop=settings.loop,
        data=settings.data,
        train_vision=settings.vision.train_vision,
        peaks=lambda model: peak_rates(settings, model),
        texts=settings.text.texts_per_image,
        tokens=settings.text.max_text_tokens,
        truncation=lambda samples: truncation_report(_texts(settings.text, start), samples),
    )


def main(argv: list[str] | None = None) -> int:
    """Run `blip2rt-train stage2`."""
    return stage_main("stage2", argv, plan, lambda settings: Stage2(settings).run())
