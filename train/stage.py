"""What both stages share: the command's main(), the trainer, and the images of dev_table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.vision import VisionEncoder

from .cli import run_main
from .data.features import FeatureSource, open_features
from .data.loaders import open_bad_samples
from .data.readers import read_data
from .data.samples import Dataset
from .data.sampling import sample_images
from .dry_run import dry_run
from .early_checks import open_settings
from .loop.parallel import this_process
from .loop.run_folder import lock_folder
from .loop.trainer import Trainer
from .plan import Plan, parts_of, step_flops
from .progress import announce
from .recipe import flat
from .settings import DataSettings


def stage_main(name: str, argv: list[str] | None, plan: Callable[[Any], Plan], train: Callable[[Any], Path]) -> int:
    """Parse a command's settings; describe the training or run it, and print its last checkpoint's folder."""

    def work() -> object:
        settings = open_settings(name, argv)
        if settings.loop.run.dry_run:
            return dry_run(settings, plan)
        with lock_folder(settings.loop.run.out, flat(settings)):
            if this_process().main:
                announce("reading data and the model that the training starts from")
            return train(settings)

    return run_main(lambda: print(work()), argv=argv)


def trained_encoder(model: Blip2, train_vision: bool) -> VisionEncoder | None:
    """The model's encoder, if it is trained."""
    return model.vision if train_vision else None


def open_trainer(model: Blip2, plan: Plan, record: dict[str, Any], llm: nn.Module | None = None) -> Trainer:
    """A trainer, prepared for what is trained and what is frozen."""
    trainer = Trainer(model, plan.loop, plan.peaks(model), record)
    trainer.flops = step_flops(plan, parts_of(model))
    encoder = trained_encoder(model, plan.train_vision)
    trained = [module for module in (llm, model.qformer, encoder) if module is not None]
    trainer.prepare(trained, frozen=[llm, None if encoder else model.vision])
    return trainer


def open_dev(data: DataSettings, model: Blip2, out: Path, *, captions: bool) -> tuple[Dataset, FeatureSource]:
    """The samples of dev_table and the features of their images; captions: without questions."""
    bad = open_bad_samples(out, data.max_bad)
    read = read_data(data.dev_table, data.images, bad)
    if captions:
        read = read.captions(data.dev_table).with_texts()
    with this_process().main_first():
        encoder = None if data.cache_features else model.vision
        return open_features(read, model.config.vision, data.features, bad, encoder=encoder)


def log_captions(trainer: Trainer, paths: list[Path], vision: FeatureSource, caption: Callable[..., list[str]]) -> None:
    """Log captions of a few images, always the same ones."""
    images = sample_images(len(paths))
    captions = caption(vision.get(images).to(trainer.device))
    shown = {paths[image].name: text for image, text in zip(images, captions, strict=True)}
    trainer.log.samples(trainer.step, shown)
