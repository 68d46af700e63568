"""Stage 1, representation learning: `python -m train.stage1 --recipe recipes/nano/stage1.yaml` (paper section 3.2).

The Q-Former learns from a frozen image encoder to extract what text needs: ITC, ITM and ITG on image-caption pairs.
"""

from __future__ import annotations

from .cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("stage1"))


import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from blip2rt.errors import OptionError
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import init_from_bert, qformer_tokenizer
from blip2rt.text import clean_caption

from .data.features import open_features
from .data.loaders import (
    ImageBatch,
    LoaderSettings,
    StreamingLoader,
    batch_features,
    open_bad_samples,
    open_loader,
    to_device,
)
from .data.readers import read_data
from .data.sampling import sample_images
from .dry_run import Plan, dry_run, further_faults, planned
from .evaluation.generation import itg_captions
from .evaluation.recall import recall
from .loop.parallel import this_process
from .loop.run_folder import lock_folder
from .loop.trainer import Trainer, vision_peaks
from .model import (
    Start,
    learning,
    learning_vision,
    qformer_config,
    start_fresh,
    start_from,
    start_itm,
    started_config,
    vision_config,
)
from .objectives.stage1 import TextBatch, hard_negatives, itm_loss, query_cosine, similarity, stage1_losses
from .recipe import flat, option, parse
from .settings import NOT_NEGATIVE, POSITIVE, DataSettings, TrainSettings, one_of


@dataclass(frozen=True)
class ContrastSettings:
    """Heads and losses of stage 1."""

    embed_dim: int = option(256, "width E of the contrastive space", check=POSITIVE)
    max_text_length: int = option(32, "tokens of a caption, [CLS] and [SEP] included", check=POSITIVE)
    itm_weight: float = option(
        1.0, "weight of ITM beside ITC and ITG; 0: it is left out; the paper has 1", check=NOT_NEGATIVE
    )
    itm_ramp: int = option(
        0, "steps over which ITM's negatives go from random to drawn by similarity", check=NOT_NEGATIVE
    )
    itm_std: float = option(
        0.0, "standard deviation of ITM's fresh head; 0: as PyTorch draws a layer", check=NOT_NEGATIVE
    )
    itc_gradient: str = option(
        "own",
        "of several processes ITC's gradient reaches each row from its own process alone (own), or from all (whole)",
        check=one_of("own", "whole"),
        metavar="WHAT",
    )
    head_lr: float = option(1e-4, "peak learning rate of the projections and heads", check=NOT_NEGATIVE)


@dataclass(frozen=True)
class Stage1Settings(TrainSettings):
    contrast: ContrastSettings = field(default_factory=ContrastSettings)


def model_config(settings: Stage1Settings) -> Blip2Config:
    """The stage-1 model that the settings describe, or `start` changed by the fields that are given."""
    contrast, qformer, start = settings.contrast, settings.qformer, settings.origin.start
    if start:
        config = started_config(Start(start, settings.given), stage=1)
        if "embed_dim" in settings.given and contrast.embed_dim != config.embed_dim:
            raise OptionError(f"embed_dim is {contrast.embed_dim}, and {start!r} has {config.embed_dim}: leave it out")
        config = replace(config, clean_captions=True)
    else:
        vision = vision_config(settings.vision)
        config = Blip2Config(
            stage=1,
            vision=vision,
            qformer=qformer_config(qformer, vision.features, text_branch=True),
            qformer_init=qformer.qformer_init,
            embed_dim=contrast.embed_dim,
            max_text_length=contrast.max_text_length,
            clean_captions=True,
            learned_positions=qformer.learned_positions,
            qformer_bits=qformer.qformer_bits,
            qformer_block=qformer.qformer_block,
            sources=settings.origin.sources,
        )
    return learning_vision(config, settings.vision.train_vision, settings.data.cache_features, start)


def build_model(settings: Stage1Settings, config: Blip2Config) -> Blip2:
    """A model from `start` or BERT; it has no image encoder where that is asked for cached features alone."""
    torch.manual_seed(settings.loop.batch.seed)
    model = Blip2(config, vision=settings.data.encodes)
    if settings.origin.start:
        start_from(model, Start(settings.origin.start, settings.given))
    else:
        init_from_bert(model)
        start_fresh(model, settings.qformer)
        start_itm(model.itm_head, settings.contrast.itm_std)
    return learning(model, settings.vision.train_vision)


def peak_rates(settings: Stage1Settings, model: Blip2) -> dict[str, float]:
    """Peak rates of what does not learn at lr, by the beginnings of parameters' names."""
    encoder = model.vision if settings.vision.train_vision else None
    heads = ("vision_proj", "text_proj", "itm_head", "lm_head")
    return vision_peaks(encoder, settings.loop.optimizer) | dict.fromkeys(heads, settings.contrast.head_lr)


@dataclass(frozen=True)
class Micro:
    """What the loss of one micro-batch is computed of."""

    images: ImageBatch
    text: TextBatch
    share: float  # tokens here over the mean of all micro-batches and processes
    hardness: float  # of ITM's negatives: 0 random, 1 drawn by similarity


class Stage1:
    """Model, data and the loss of one step."""

    def __init__(self, settings: Stage1Settings) -> None:
        self.contrast = settings.contrast
        config = model_config(settings)
        loading = LoaderSettings(settings.data, settings.loop.batch, config.vision, texts=1, by_caption=True)
        self.loader = open_loader(loading, settings.loop.run.out)
        if isinstance(self.loader, StreamingLoader) and self.loader.note and this_process().main:
            print(f"note: {self.loader.note}", file=sys.stderr)
        self.model = build_model(settings, config)
        self.tokenizer = qformer_tokenizer(config)
        self.trainer = Trainer(self.model, settings.loop, peak_rates(settings, self.model), flat(settings))
        vision = self.model.vision
        learns = [vision] if vision is not None and settings.vision.train_vision else []
        self.trainer.prepare([self.model.qformer, *learns], frozen=[None if learns else vision])
        self.dev = Dev(self, settings.data) if settings.data.dev_table else None

    def run(self) -> Path:
        """Train. Return the last checkpoint's folder."""
        return self.trainer.run(self.batches(), self.loss, self.dev.evaluate if self.dev else None)

    def batches(self) -> Iterator[tuple[int, list[Micro]]]:
        """Endless (step, micro-batches) from the trainer's step on."""
        ramp, device = self.contrast.itm_ramp, self.trainer.device
        for step, rows in self.loader.steps(self.trainer.step):
            hardness = min(1.0, step / ramp) if ramp else 1.0
            texts = [self.text_batch([group[0].text for group in part.groups], part.image_ids) for part in rows]
            shares = this_process().loss_weights([int(text.text_mask[:, 1:].sum()) for text in texts])
            images = [to_device(part, device) for part in rows]
            yield step, [Micro(*micro, hardness) for micro in zip(images, texts, shares, strict=True)]

    def text_batch(self, texts: list[str], images: Sequence[int] | torch.Tensor) -> TextBatch:
        """Token ids padded to the longest of the batch."""
        encoded = self.tokenizer(
            [clean_caption(text) for text in texts],
            padding=True,
            truncation=True,
            max_length=self.model.config.max_text_length,
            return_tensors="pt",
        )
        device = self.trainer.device
        ids, mask = encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
        return TextBatch(ids, mask, torch.as_tensor(images, device=device))

    def loss(self, micro: Micro) -> dict[str, torch.Tensor]:
        """ITC + ITM + ITG."""
        return stage1_losses(
            self.model,
            batch_features(self.model, micro.images),
            micro.text,
            self.tokenizer.bos_token_id,
            self.contrast.itm_weight,
            micro.hardness,
            parallel=this_process(),
            generator=self.trainer.generator,
            itg_share=micro.share,
            whole_gradient=self.contrast.itc_gradient == "whole",
        )


class Dev:
    """Judges unseen images: recall by ITC over all of them, ITM against hard negatives, the queries' diversity."""

    def __init__(self, stage: Stage1, data: DataSettings) -> None:
        self.stage = stage
        bad = open_bad_samples(stage.trainer.out, data.max_bad)
        read = read_data(data.dev_table, data.images, bad).captions(data.dev_table).with_texts()
        model = stage.model
        encoder = None if data.cache_features else model.vision
        with this_process().main_first():
            self.data, self.vision = open_features(read, model.config.vision, data.features, bad, encoder=encoder)

    def evaluate(self) -> dict[str, float]:
        """Measures by name; tells the log a few captions."""
        model, samples, device = self.stage.model, self.data.samples, self.stage.trainer.device
        outputs = [
            model.query_output(self.vision.get(list(range(i, min(i + 50, len(self.data.paths))))).to(device))
            for i in range(0, len(self.data.paths), 50)
        ]
        query_output = torch.cat(outputs)
        image_embeds = model.image_embeds(query_output).float()
        texts = [
            self.stage.text_batch([s.text for s in samples[i : i + 100]], [s.image for s in samples[i : i + 100]])
            for i in range(0, len(samples), 100)
        ]
        text_embeds = torch.cat([model.text_embeds(t.token_ids, t.text_mask).float() for t in texts])
        owner = torch.tensor([s.image for s in samples])
        sim = torch.cat([similarity(part, text_embeds).float() for part in image_embeds.split(100)])
        scores = recall(sim.cpu().numpy(), owner.numpy())
        self.stage.trainer.log.samples(self.stage.trainer.step, self._samples())
        return scores | {"itm_accuracy": self._itm_accuracy(sim), "query_cosine": float(query_cosine(query_output))}

    def _samples(self) -> dict[str, str]:
        """ITG's captions of a few images, always the same ones."""
        images = sample_images(len(self.data.paths))
        features = self.vision.get(images).to(self.stage.trainer.device)
        captions = itg_captions(self.stage.model, self.stage.tokenizer, features)
        return {self.data.paths[image].name: caption for image, caption in zip(images, captions, strict=True)}

    def _itm_accuracy(self, sim: torch.Tensor, count: int = 400) -> float:
        """Balanced accuracy on first captions of `count` images against negatives drawn by similarity."""
        model = self.stage.model
        first = {s.image: i for i, s in reversed(list(enumerate(self.data.samples)))}
        rows = [first[image] for image in range(min(count, len(self.data.paths)))]
        torch.manual_seed(0)
        ids = torch.arange(len(rows), device=sim.device)
        wrong_image, wrong_text = hard_negatives(sim[: len(rows)][:, rows], model.temperature, ids)
        images, texts = torch.cat((ids, wrong_image, ids)).tolist(), torch.cat((ids, ids, wrong_text)).tolist()
        logits = []
        for i in range(0, len(images), 50):
            text = self.stage.text_batch(
                [self.data.samples[rows[t]].text for t in texts[i : i + 50]], images[i : i + 50]
            )
            features = self.vision.get(images[i : i + 50]).to(sim.device)
            logits.append(model.itm_logits(features, text.token_ids, text.text_mask))
        return float(itm_loss(torch.cat(logits).float(), len(rows))[1])


def plan(settings: Stage1Settings) -> Plan:
    """What a dry run describes."""
    config = model_config(settings)
    return Plan(
        config=config,
        start=Start(settings.origin.start, settings.given),
        loop=settings.loop,
        data=settings.data,
        train_vision=settings.vision.train_vision,
        peaks=lambda model: peak_rates(settings, model),
        texts=1,
        tokens=config.max_text_length,
    )


def main(argv: list[str] | None = None) -> int:
    def work() -> object:
        settings = parse(Stage1Settings, argv, __doc__ or "", lambda wrong: further_faults(wrong, plan))
        if settings.loop.run.dry_run:
            return dry_run(planned(settings, plan))
        with lock_folder(settings.loop.run.out, flat(settings)):
            return Stage1(settings).run()

    return run_main(lambda: print(work()), argv=argv)
