"""A small image encoder learns to see as a larger one: `python -m train.extras.distill --recipe
recipes/nano/encoder.yaml`.

For bundles that the larger one does not fit. The small encoder's features are led to the teacher's at every position,
and their mean to the teacher's features of the whole image; both see the same view, mixtures of two images among them
(Beyer et al. 2022). On request it is held to what it knew before of things that these images do not show: a linear map
of its features stays what `former` has there (after Li and Hoiem 2016). The trainings that follow name its checkpoint
as vision_weights. Knows images and encoders.
"""

from __future__ import annotations

from ..cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("distill"))


import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from blip2rt.errors import OptionError
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.vision import VisionEncoder, layer_numbers

from ..data.features import readable
from ..data.feed import bad_samples
from ..data.readers import read_data
from ..loop.folder import owned
from ..loop.parallel import here
from ..loop.trainer import Losses, Trainer, vision_peaks
from ..model import vision_config
from ..recipe import flat, option, parse
from ..settings import NOT_NEGATIVE, OptimizerSettings, QFormerSettings, TrainSettings
from .student import FAR, Former, Hidden, Student
from .teacher import BATCH, Targets, TeacherSettings, view_pixels

_KNOWN = 1000  # images whose targets say what is common to all
_KNOWN_TO_FORMER = 128  # the same, of a former encoder's features
_SHARPNESS = 20.0  # of the likeness between images, in which cosines become shares
_OF_STAGES = ("start", "train_data", "dry_run", "qformer_bits")


@dataclass(frozen=True)
class StudentSettings:
    """Student."""

    frozen_layers: int = option(
        0, "the small encoder's first N layers, and what is before them, stay as they are", check=NOT_NEGATIVE
    )
    cache_layers: bool = option(
        False, "compute their output for every view, plain and mirrored, once; keep it in `features`, in 16 bits"
    )
    head_lr: float = option(
        2e-3, "peak learning rate of the maps from its features to the teacher's", check=NOT_NEGATIVE
    )
    former: str = option(
        "", "weights of the small encoder whose features stay readable in its own; without any, all may go",
        metavar="WEIGHTS",
    )  # fmt: skip
    former_weight: float = option(1.0, "weight of the loss that sees to it")

    def faults(self) -> list[str]:
        loose = self.cache_layers and not self.frozen_layers
        return ["cache_layers keeps the output of frozen layers: give frozen_layers, 1 or more"] if loose else []


@dataclass(frozen=True)
class DistillSettings(TrainSettings):
    # A stage's recipe may be the base of a distillation's, so that its fields are accepted and not shown.
    qformer: QFormerSettings = field(default_factory=QFormerSettings, metadata={"shown": False})
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)

    def faults(self) -> list[str]:
        strange = [name for name in _OF_STAGES if name in self.given]
        wrong = f"{', '.join(strange)}: of stage 1 and 2 alone, a distillation goes on from vision_weights"
        return [*super().faults(), *([wrong] if strange else [])]


def model_config(settings: DistillSettings) -> Blip2Config:
    """The small encoder that the settings name, as a config whose checkpoints hold its weights. Raise OptionError."""
    vision = vision_config(settings.vision)
    if math.isqrt(vision.positions) ** 2 != vision.positions:
        raise OptionError(
            f"vision_source {settings.vision.vision_source} has {vision.positions} positions, not a square grid: "
            "give another encoder"
        )
    return Blip2Config(vision=vision, vision_trained=True, sources=settings.origin.sources)


@dataclass(frozen=True)
class Seen:
    """What the loss of one micro-batch is computed of."""

    hidden: torch.Tensor  # (b, ...): output of the frozen layers; pixels where there are none
    positions: torch.Tensor  # (b, N, C) of the teacher
    image: torch.Tensor  # (b, E) of the teacher
    former: torch.Tensor | None  # (b, N, C): features of the former encoder


class Distill:
    """Encoders, data and the loss of one step."""

    def __init__(self, settings: DistillSettings) -> None:
        self.student, self.views = settings.student, settings.data.views
        self.batch, self.steps = settings.loop.batch, settings.loop.optimizer.steps
        config = model_config(settings)
        self.side = math.isqrt(config.vision.positions)
        self.targets = self._targets(settings, settings.data.train_table, self.views)
        known, image = self.targets.rows(np.arange(min(_KNOWN, len(self.targets.paths))))
        self.mean, self.std = known.mean((0, 1)), known.std((0, 1)) + 1e-4
        self.common = F.normalize(image, dim=-1).mean(0)
        torch.manual_seed(self.batch.seed)
        self.model = self._student(config, (known.shape[-1], image.shape[-1]))
        self.hidden = None
        if self.student.cache_layers:
            self.hidden = Hidden(self.targets.paths, self.model, settings.data.features, self.views)
        self.former = self._former(settings.vision.vision_weights) if self.student.former else None
        self.trainer = Trainer(self.model, settings.loop, self._peaks(settings.loop.optimizer), flat(settings))
        self.trainer.prepare([self.model.vision], frozen=[])
        if self.former:
            self.former.to(self.trainer.device)
        dev = settings.data.dev_table
        self.dev = self._targets(settings, dev, views=1) if dev else None

    def run(self) -> Path:
        """Train. Return the last checkpoint's folder."""
        return self.trainer.run(self.batches(), self.loss, self._evaluate if self.dev else None)

    def _targets(self, settings: DistillSettings, table: str, views: int) -> Targets:
        data = settings.data
        bad = bad_samples(settings.loop.run.out, data.max_bad)
        read = readable(read_data(table, data.images, bad), bad)
        return Targets(read.paths, settings.teacher, data.features, self.side, views)

    def _student(self, config: Blip2Config, widths: tuple[int, int]) -> Student:
        """The small encoder, of which all but the frozen layers learns."""
        frozen = self.student.frozen_layers
        model = Student(config, frozen, widths, bool(self.student.former))
        model.vision.unfreeze()
        for name, number in layer_numbers(model.vision).items():
            if frozen and number <= frozen:
                model.vision.get_parameter(name).requires_grad_(False)
        return model

    def _peaks(self, optimizer: OptimizerSettings) -> dict[str, float]:
        heads = ["positions_head", "image_head"] + ["former_head"] * bool(self.student.former)
        return vision_peaks(self.model.vision, optimizer) | dict.fromkeys(heads, self.student.head_lr)

    def _former(self, weights: str) -> Former:
        """The former encoder; the map to its features begins as if they were the student's.

        Raise OptionError where the student, which has `weights`, does not share its frozen layers.
        """
        model, frozen, former = self.model, self.student.frozen_layers, self.student.former
        config = replace(model.config.vision, weights=former)
        encoder = VisionEncoder(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, number in layer_numbers(encoder).items():
            shared = frozen and number <= frozen
            if shared and not torch.equal(encoder.get_parameter(name), model.vision.get_parameter(name)):
                raise OptionError(f"former {former} has other frozen_layers than {weights}: give fewer, or another one")
        where = [(0, index) for index in range(min(_KNOWN_TO_FORMER, len(self.targets.paths)))]
        parts = (where[start : start + BATCH] for start in range(0, len(where), BATCH))
        hidden = (model.lower(view_pixels(self.targets.paths, part, config)) for part in parts)
        made = Former(encoder, frozen, hidden)
        with torch.no_grad():
            model.former_head.weight.copy_(torch.diag(1 / made.std))
            model.former_head.bias.copy_(-made.mean / made.std)
        return made

    def batches(self) -> Iterator[tuple[int, list[Seen]]]:
        """(step, micro-batches) from the trainer's step on."""
        size, total = self.batch.batch_size, self.views * len(self.targets.paths)
        for step in range(self.trainer.step, self.steps):
            rng = np.random.default_rng((self.batch.seed, step))
            rows = rng.choice(total, size, replace=total < size)
            mirrored = rng.random(size) < 0.5
            pairs = here().share(list(zip(rows, mirrored, strict=True)))
            each = len(pairs) // self.batch.accumulate
            parts = (pairs[i : i + each] for i in range(0, len(pairs), each))
            yield step, [self._seen(self.targets, *map(np.asarray, zip(*part, strict=True))) for part in parts]

    def _seen(self, targets: Targets, rows: np.ndarray, mirrored: np.ndarray) -> Seen:
        config, device = self.model.config.vision, self.trainer.device
        where, flip = targets.where(rows), torch.from_numpy(mirrored)
        if self.hidden is not None and targets is self.targets:
            hidden = self.hidden.rows(where, mirrored).to(device)
        else:
            pixels = view_pixels(targets.paths, where, config)
            pixels[flip] = pixels[flip].flip(3)
            hidden = self.model.lower(pixels.to(device))
        positions, image = targets.rows(rows)
        grid = positions.unflatten(1, (self.side, self.side))
        grid[flip] = grid[flip].flip(2)
        # A few dimensions of a transformer are far from the others in a few positions.
        positions = ((grid.flatten(1, 2) - self.mean) / self.std).clamp(-FAR, FAR)
        image = F.normalize(F.normalize(image, dim=-1) - self.common, dim=-1)
        former = self.former(hidden) if self.former else None
        return Seen(hidden, positions.to(device), image.to(device), former)

    def loss(self, seen: Seen) -> Losses:
        """How far the student is from the teacher, and from what it was."""
        positions, image, former = self.model(seen.hidden)
        image = F.normalize(image.float(), dim=-1)
        apart = F.mse_loss(positions.float(), seen.positions)
        angle = 1 - (image * seen.image).sum(-1).mean()
        alike, wanted = (_SHARPNESS * vectors @ seen.image.T for vectors in (image, seen.image))
        likeness = F.kl_div(alike.log_softmax(-1), wanted.softmax(-1), reduction="batchmean")
        losses = {"loss": apart + 2 * angle + likeness, "positions": apart, "image": angle, "likeness": likeness}
        if seen.former is not None:
            lost = F.mse_loss(former.float(), seen.former)
            turned = 1 - F.cosine_similarity(former.float().mean(1), seen.former.mean(1)).mean()
            losses["loss"] = losses["loss"] + self.student.former_weight * (lost + 2 * turned)
            losses |= {"former": lost, "former_image": turned}
        return losses

    def _evaluate(self) -> dict[str, float]:
        """The losses of unseen images, without likeness."""
        assert self.dev is not None
        count = len(self.dev.paths)
        names = ["positions", "image"] + ["former", "former_image"] * bool(self.former)
        sums = dict.fromkeys(names, 0.0)
        for start in range(0, count, BATCH):
            rows = np.arange(start, min(start + BATCH, count))
            losses = self.loss(self._seen(self.dev, rows, np.zeros(len(rows), bool)))
            sums = {name: value + float(losses[name]) * len(rows) for name, value in sums.items()}
        return {name: value / count for name, value in sums.items()}


def main(argv: list[str] | None = None) -> int:
    def work() -> object:
        settings = parse(DistillSettings, argv, __doc__ or "")
        with owned(settings.loop.run.out, flat(settings)):
            return Distill(settings).run()

    return run_main(lambda: print(work()), argv=argv)
