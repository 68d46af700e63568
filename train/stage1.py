"""Stage 1, representation learning: `python -m train.stage1 --recipe recipes/nano/stage1.yaml` (paper section 3.2).

The Q-Former learns to extract from a frozen image encoder what texts need, by three losses on image-caption pairs, all
in objectives/stage1.py:

- ITC, image-text contrast: the image's queries and the text's [CLS] agree (`itc_loss`);
- ITM, image-text matching: queries and text together tell whether they belong together (`itm_loss`);
- ITG, image-grounded text generation: the text is predicted from the queries (`itg_loss`).
"""

from .cli import run_command

if __name__ == "__main__":  # by name, so that an import error below becomes one line
    raise SystemExit(run_command("stage1"))


import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from blip2rt.errors import OptionError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.row_noise import RowNoise
from blip2rt.modeling.vision import VisionEncoder
from blip2rt.native import native

from .data.loaders import ImageBatch, LoaderSettings, StreamingLoader, batch_features, open_loader
from .evaluation.generation import itg_captions
from .evaluation.metrics import recall
from .loop.parallel import this_process
from .loop.trainer import vision_peaks
from .model import StartingPoint, fresh_config, initialize_fresh, open_checkpoint, training_mode, with_trained_vision
from .objectives.stage1 import (
    LossSettings,
    TextBatch,
    hard_negatives,
    itm_loss,
    query_cosine,
    similarity,
    stage1_losses,
)
from .objectives.stage1_batch import BatchPart, WholeBatch, contrast_batch, contrast_embeds, join_texts
from .plan import Plan
from .recipe import flat
from .settings import DataSettings
from .stage import log_captions, open_dev, open_trainer, stage_main, trained_encoder
from .stage_settings import Stage1Settings as Stage1Settings
from .warm_start import from_checkpoint


def starting_point(settings: Stage1Settings) -> StartingPoint:
    """The stage-1 model that the settings describe, or `start` changed by the given fields."""
    contrast, start = settings.contrast, open_checkpoint(settings.origin.start, settings.given)
    if start:
        point = from_checkpoint(start, settings.given, stage=1)
        width = point.config.embed_dim
        if "embed_dim" in settings.given and contrast.embed_dim != width:
            raise OptionError(f"embed_dim is {contrast.embed_dim}, but {start.source!r} has {width}: leave it out")
        point = replace(point, config=replace(point.config, clean_captions=True))
    else:
        config, bert = fresh_config(settings, text_branch=True)
        config = replace(config, embed_dim=contrast.embed_dim, max_text_length=contrast.max_text_length)
        point = StartingPoint(config, bert)
    train_vision, cached = settings.vision.train_vision, settings.data.cache_features
    return replace(point, config=with_trained_vision(point.config, train_vision, cached, settings.origin.start))


def build_model(settings: Stage1Settings, point: StartingPoint) -> Blip2:
    """A model from `start` or BERT; without its image encoder if that is only used for cached features."""
    torch.manual_seed(settings.loop.batch.seed)
    model = Blip2(point.config, VisionEncoder(point.config.vision) if settings.data.encodes else None)
    if point.start:
        point.load_start(model)
    else:
        point.bert.initialize(model)
        initialize_fresh(model, settings.qformer, settings.contrast.itm_std)
    return training_mode(model, settings.vision.train_vision)


def peak_rates(settings: Stage1Settings, model: Blip2) -> dict[str, float]:
    """Peak learning rates that differ from lr, by prefixes of parameter names."""
    rates = vision_peaks(trained_encoder(model, settings.vision.train_vision), settings.loop.optimizer)
    if "head_lr" in settings.given:
        rates |= dict.fromkeys(("vision_proj", "text_proj", "itm_head", "lm_head"), settings.contrast.head_lr)
    return rates


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of the loss of one micro-batch."""

    images: ImageBatch
    text: TextBatch
    share: float  # tokens here over the mean of all micro-batches and processes
    noise: RowNoise  # of its rows, for dropout
    hardness: float  # of ITM's negatives: 0 random, 1 drawn by similarity
    part: BatchPart | None = None  # its place in the batch, if that has several micro-batches


class Stage1:
    """Model, data and the loss of one step."""

    def __init__(self, settings: Stage1Settings) -> None:
        self.contrast = settings.contrast
        point = starting_point(settings)
        loop = settings.loop
        data = settings.data
        loading = LoaderSettings(data, loop.batch, point.config.vision, texts=1, by_caption=True)
        self.loader = open_loader(loading, loop.run.out)
        if isinstance(self.loader, StreamingLoader) and self.loader.note and this_process().main:
            print(f"note: {self.loader.note}", file=sys.stderr)
        self.model = build_model(settings, point)
        self.tokenizer = point.bert.tokenizer
        self.train_vision = settings.vision.train_vision
        self.trainer = open_trainer(self.model, plan(settings, point), flat(settings))
        self.batch = WholeBatch(this_process(), self.trainer.generator)
        self.dev = Dev(self, data) if data.dev_table else None

    def run(self) -> Path:
        """Train. Return the last checkpoint's folder."""
        evaluate = self.dev.evaluate if self.dev else None
        return self.trainer.run(self.batches(), self.loss, evaluate, self.contrast_whole)

    def batches(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        """Endless (step, micro-batches) from the trainer's step on."""
        ramp, device = self.contrast.itm_ramp, self.trainer.device
        for step, rows in self.loader.steps(self.trainer.step):
            hardness = min(1.0, step / ramp) if ramp else 1.0
            texts = [self.text_batch([group[0].text for group in part.groups], part.image_ids) for part in rows]
            counts = [int(text.text_mask[:, 1:].sum()) for text in texts]
            shares, self.trainer.tokens = this_process().loss_weights(counts), sum(counts)
            images = [part.to(device) for part in rows]
            parts = zip(images, texts, shares, self.trainer.noise(step), strict=True)
            yield step, [MicroBatch(*micro, hardness) for micro in parts]

    def text_batch(self, texts: list[str], images: Sequence[int] | torch.Tensor) -> TextBatch:
        """Token ids padded to the longest of the batch."""
        cleaned, length = [native.clean_caption(text) for text in texts], self.model.config.max_text_length
        encoded = self.tokenizer(cleaned, padding=True, truncation=True, max_length=length, return_tensors="pt")
        device = self.trainer.device
        ids, mask = encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
        return TextBatch(ids, mask, torch.as_tensor(images, device=device))

    def contrast_whole(self, micros: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
        """Give each of several micro-batches its part in the contrast of all; runs without gradients.

        Embeddings are computed here, and again by `loss`, with gradients and the same dropout.
        """
        parallel, size = this_process(), len(micros[0].text.image_ids)
        features, embeds, settings = [], [], self._loss_settings(micros[0].hardness)
        for micro in micros:
            features.append(batch_features(self.model, micro.images))
            embeds.append(contrast_embeds(self.model, features[-1], micro.text, settings, micro.noise))
        text = join_texts([micro.text for micro in micros])
        images, texts = (torch.cat(each) for each in zip(*embeds, strict=True))
        contrast = contrast_batch(self.model, (images, texts), text, settings, self.batch)
        wanted = contrast.wrong_image.view(parallel.world, len(micros), size)
        own = parallel.own_rows(len(micros) * size).to(wanted.device)
        pixels = [micro.images.pixels for micro in micros if micro.images.pixels is not None]
        learns = bool(pixels) and self.train_vision  # the encoder then sees the wrong images again
        source = torch.cat(pixels if learns else features)

        def wrong_features(number: int) -> torch.Tensor:
            rows = parallel.fetch(source, wanted[:, number])
            return self.model.vision_features(rows) if learns else rows

        found = []
        for number, micro in enumerate(micros):
            rows = slice(number * size, (number + 1) * size)
            part = BatchPart(contrast, rows, own[rows], len(micros), partial(wrong_features, number))
            known = micro.images if learns else replace(micro.images, vision_features=features[number])
            found.append(replace(micro, images=known, part=part))
        return found

    def loss(self, micro: MicroBatch) -> dict[str, torch.Tensor]:
        """ITC + ITM + ITG."""
        return stage1_losses(
            self.model,
            batch_features(self.model, micro.images),
            micro.text,
            self._loss_settings(micro.hardness),
            micro.part or self.batch,
            micro.share,
            micro.noise,
        )

    def _loss_settings(self, hardness: float) -> LossSettings:
        return LossSettings(self.tokenizer.bos_token_id, self.contrast.itm_weight, hardness)


class Dev:
    """Evaluation on unseen images: recall by ITC over all of them, ITM against hard negatives, the queries' cosine."""

    def __init__(self, stage: Stage1, data: DataSettings) -> None:
        self.stage = stage
        self.data, self.vision = open_dev(data, stage.model, stage.trainer.out, captions=True)

    def evaluate(self) -> dict[str, float]:
        """Measures by name; logs a few captions by ITG."""
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
        log_captions(
            self.stage.trainer,
            self.data.paths,
            self.vision,
            lambda features: itg_captions(model, self.stage.tokenizer, features),
        )
        return scores | {"itm_accuracy": self._itm_accuracy(sim), "query_cosine": float(query_cosine(query_output))}

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


def plan(settings: Stage1Settings, point: StartingPoint | None = None) -> Plan:
    """The training in numbers; point: where it starts, if that is known."""
    point = point or starting_point(settings)
    return Plan(
        point=point,
        loop=settings.loop,
        data=settings.data,
        train_vision=settings.vision.train_vision,
        peaks=lambda model: peak_rates(settings, model),
        texts=1,
        tokens=point.config.max_text_length,
    )


def main(argv: list[str] | None = None) -> int:
    """Run `blip2rt-train stage1`."""
    return stage_main("stage1", argv, plan, lambda settings: Stage1(settings).run())
