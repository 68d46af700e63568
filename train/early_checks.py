"""What can be known before torch is imported, which takes seconds: settings, paths, data, and the number of steps."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip2rt.errors import Blip2rtError, OptionError, collected
from blip2rt.modeling.sources import fetch, is_local, locate

from .cli import COMMANDS
from .data.readers import read_data
from .data.samples import BadSamples, Dataset
from .loop.conflicts import settings_conflict
from .recipe import flat, parse
from .settings import TrainSettings
from .stage_settings import SelfCriticalSettings, Stage1Settings, Stage2Settings

KINDS: dict[str, type[Any]] = {
    "stage1": Stage1Settings,
    "stage2": Stage2Settings,
    "self-critical": SelfCriticalSettings,
}
_LARGE = 64 << 20  # bytes of a list that is worth reading twice


def check(name: str, argv: list[str] | None) -> None:
    """Raise OptionError for all mistakes in a training's command that need no torch to be found."""
    settings = _parse(name, argv)
    run = _common(settings).loop.run
    found = [] if run.dry_run else [*path_faults(_common(settings)), settings_conflict(Path(run.out), flat(settings))]
    if any(found):
        raise OptionError("; ".join(dict.fromkeys(filter(None, found))))


def _parse(name: str, argv: list[str] | None) -> Any:
    return parse(KINDS[name], argv, COMMANDS[name][1], lambda faulty: path_faults(_common(faulty)))


def open_settings(name: str, argv: list[str] | None) -> Any:
    """Parse the settings of a training, with as many steps as `epochs` asks for. Raise OptionError."""
    settings = _parse(name, argv)
    if isinstance(settings, SelfCriticalSettings):
        return replace(settings, stage2=with_steps(settings.stage2))
    return with_steps(settings)


def with_steps(settings: Any) -> Any:
    """The settings with the number of steps that `epochs` means.

    The warm-up takes at most a tenth of them, or of `steps` that would end with it.
    """
    optimizer, batch = settings.loop.optimizer, settings.loop.batch.batch_size
    if not optimizer.epochs:
        warmup = optimizer.warmup if optimizer.warmup < optimizer.steps else optimizer.steps // 10
        return replace(settings, loop=replace(settings.loop, optimizer=replace(optimizer, warmup=warmup)))
    try:
        rows = sum(_rows(settings, data) for data in _tables(settings))
    except Blip2rtError:
        if settings.loop.run.dry_run:  # it reports this among all faults
            return settings
        raise
    steps = max(1, round(optimizer.epochs * rows / batch))
    optimizer = replace(optimizer, steps=steps, warmup=min(optimizer.warmup, steps // 10))
    return replace(settings, loop=replace(settings.loop, optimizer=optimizer))


def _rows(settings: TrainSettings, data: Dataset) -> int:
    """What an epoch counts: captions in stage 1, images in stage 2."""
    one = isinstance(settings, Stage1Settings) and not settings.data.train_tables
    return sum(not sample.prompt for sample in data.samples) if one else len(data.paths)


def _tables(settings: TrainSettings, largest: float = float("inf")) -> Iterator[Dataset]:
    """Read the lists that the training reads, up to a size in bytes; shards are indexed later."""
    data = settings.data
    for entry in data.entries:
        path = str(entry.get("path", "")) if isinstance(entry, dict) else ""
        file = Path(path)
        shards = path.endswith(".tar") or (file.is_dir() and any(file.glob("*.tar")))
        if path and not shards and (not file.is_file() or file.stat().st_size <= largest):
            yield read_data(path, str(entry.get("images", "")), BadSamples(data.max_bad))
    if data.dev_table and not data.train_data and largest < float("inf"):
        yield read_data(data.dev_table, data.images, BadSamples(data.max_bad))


def path_faults(settings: TrainSettings) -> list[str]:
    """Everything that does not exist or cannot be read: data first, then checkpoints and parts."""
    found: list[str] = []
    out = Path(settings.loop.run.out)
    if out.exists() and not out.is_dir():
        found.append(f"out {str(out)!r} is a file: name a folder")
    if settings.data.train_table or settings.data.train_tables or settings.data.train_data:
        with collected(found):
            list(_tables(settings, _LARGE))
    checkpoints = (settings.origin.start, getattr(getattr(settings, "prefix", None), "stage1", ""))
    parts = [settings.given[name] for name in ("llm_source", "qformer_init") if settings.given.get(name)]
    for source, find in [*((each, locate) for each in checkpoints), *((each, fetch) for each in parts)]:
        with collected(found):
            if source and is_local(source):
                find(source)
    return found


def _common(settings: Any) -> TrainSettings:
    common: TrainSettings = getattr(settings, "stage2", settings)
    return common
