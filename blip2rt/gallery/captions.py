"""`blip2rt caption`: pictures -> descriptions -> outputs.

The outputs record what is done, and descriptions are written in the order of the pictures, batch by batch. An
interrupted run loses only the batches in the graphs; the same command resumes and ends with the same result.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..command_line import show, show_json
from ..errors import Blip2rtError, one_line
from ..object_storage import local_output
from ..results import finish_reason, too_late
from .flags import XMP_NAMES
from .outputs import DISK_FULL, Description, Sink
from .outputs.settings import OutputSettings, check_template, rendered
from .outputs.tables import COLUMNS, Table
from .prefetch import Batch, Executor, Parallelism, map_ordered, prefetch
from .progress import Counts, FailureLog, ProgressLine, failure_line, print_status, summary
from .sources import Failure, Picture, Sources
from .walk import walk

if TYPE_CHECKING:
    from ..model import Model
    from ..pipeline import RGB
    from ..results import Scored
    from ..tasks import GenerationTask

Plan = Callable[[Picture], "list[Sink] | Failure | None"]
PLAIN = "{caption}"  # a template
BATCH_SIZE = 16  # chosen by the measurement in benchmarks/LOG.md


@dataclass(frozen=True)
class TextSettings:
    """What to generate: a caption that continues a prompt, or the answer to a question."""

    prompt: str | None
    question: str | None
    options: Mapping[str, Any]
    template: str = PLAIN  # of --template
    min_confidence: float | None = None
    unsure: str = "maybe"  # below it: "maybe", to write so, or "silent", to write nothing
    pool: str | None = None  # file of captions that guide; "none": not even the bundle's

    def task(self, model: Model, confidence: bool) -> GenerationTask:
        """Check these settings against a model. confidence: also rate each caption. Raises OptionError."""
        confidence = confidence or self.min_confidence is not None  # to hedge
        task = replace(model.task(self.prompt, self.question, **self.options), confidence=confidence)
        return model.matcher.with_pool(task, self.pool)

    def hedged(self, caption: Scored) -> str:
        """The caption, or what takes its place if its confidence is too low."""
        low = self.min_confidence is not None and (caption.confidence or 0.0) < self.min_confidence
        return ("" if self.unsure == "silent" else f"maybe {caption.text}") if low else caption.text

    @property
    def flags(self) -> str:
        """The flags that shape the text, quoted for a shell."""
        template = "" if self.template == PLAIN else self.template
        given = {"--ask": self.question, "--prompt": self.prompt, "--template": template, "--pool": self.pool}
        if self.min_confidence is not None:
            given |= {"--min-confidence": f"{self.min_confidence:g}", "--unsure": self.unsure}
        return shlex.join([word for flag, value in given.items() if value for word in (flag, value)])


@dataclass(frozen=True)
class Job:
    """Which pictures are described, where the descriptions go, and how many pictures are in work at once."""

    sources: Sources
    outputs: OutputSettings
    parallelism: Parallelism


class StrictError(Blip2rtError):
    """The first failure of a strict run."""


def caption(model: Model, job: Job, texts: TextSettings, executor: Executor | None = None) -> int:
    """Describe pictures and return the exit code. executor: what runs the graphs, instead of this process."""
    check_template(texts.template)
    if texts.min_confidence is not None:
        model.matcher.require_confidence()
    return execute(_CaptionRun(model, job, texts, executor))


def execute(run: Run) -> int:
    """Describe pictures and return the exit code."""
    sources, outputs, counts = run.job.sources, run.job.outputs, run.counts
    printer = Printer(outputs.json, sources.paths[0] if sources.single else None) if outputs.printed else None
    with contextlib.ExitStack() as stack:
        line = ProgressLine(sources, counts, printer is not None)
        stack.callback(line.close)
        failures = FailureLog(outputs.errors, line, outputs.json)
        stack.callback(failures.close)
        try:
            sinks: list[Sink] = []
            if outputs.out is not None:
                outputs = replace(outputs, out=stack.enter_context(local_output(outputs.out)))
            for sink in [printer] if printer is not None else _open_sinks(run, outputs):
                stack.callback(sink.close)
                sinks.append(sink)
            for batch, results in run.batches(partial(_plan, sinks)):
                line.clear() if printer is not None else None
                run.write(batch, results, failures)
                line.show()
            for sink in sinks:
                sink.finish(counts.exit_code == 2)
        except KeyboardInterrupt:
            line.close()
            if printer is None:
                effect = "--overwrite starts over" if outputs.overwrite else "the same command resumes"
                print_status(f"{summary(counts, run.verb, None)}; {effect}")
            raise
    several = printer is None or any(map(os.path.isdir, sources.paths))
    if several or counts.cut or (counts.failed and outputs.errors):
        print_status(summary(counts, run.verb, outputs.errors))
    return counts.exit_code


def _open_sinks(run: Run, outputs: OutputSettings) -> Iterator[Sink]:
    if outputs.sidecar is not None:
        from .outputs.sidecars import TextSidecar

        yield TextSidecar(outputs.sidecar, outputs.overwrite)
    if outputs.xmp:
        yield run.open_xmp(outputs.overwrite, outputs.xmp == XMP_NAMES[0])
    if outputs.out is not None:
        yield Table(outputs.out, outputs.overwrite, run.name, run.flags, run.columns)


def _plan(sinks: Sequence[Sink], picture: Picture) -> list[Sink] | Failure | None:
    """Return the sinks that need a picture; None if it is done."""
    needing = []
    for sink in sinks:
        needs = sink.needs(picture)
        if isinstance(needs, Failure):
            return needs
        if needs:
            needing.append(sink)
    return needing or None


class Run:
    """Describes batches of pictures and counts results. A subclass says with what."""

    verb = "captioned"
    columns: tuple[str, ...] = COLUMNS  # of a table

    def __init__(self, model: Model, job: Job, flags: str) -> None:
        """flags: those that shape the descriptions, for tables."""
        self.model, self.name, self.job, self.flags = model, model.bundle.manifest.name, job, flags
        self.counts = Counts()

    def batches(self, plan: Plan) -> Iterator[tuple[Batch[list[Sink]], Any]]:
        """Yield batches in order, each with the results of its images."""
        batches = prefetch(self.model, walk(self.job.sources), plan, self.job.parallelism)
        return map_ordered(batches, self.describe, self.job.parallelism.workers)

    def compute(self, images: list[RGB], first_image: int) -> Sequence[Any]:
        """RGB images, the number of the first -> the result of each. Runs on any thread."""
        raise NotImplementedError

    def description(self, name: str, result: Any) -> Description | Failure:
        """Return what to write about the picture `name`, or why it failed."""
        raise NotImplementedError

    def open_xmp(self, overwrite: bool, replace_extension: bool) -> Sink:
        """Open the sidecars of --xmp."""
        from .outputs.xmp import XmpSidecar

        return XmpSidecar(overwrite, replace_extension)

    def describe(self, batch: Batch[list[Sink]]) -> Sequence[Any]:
        """Run the graphs on a batch that has work. Runs on any thread."""
        return self.compute([rgb for _, rgb in batch.images], batch.first) if batch.has_work else []

    def write(self, batch: Batch[list[Sink]], results: Sequence[Any], log: FailureLog) -> None:
        """Write each result to the sinks that need it, in the order of the pictures."""
        self.counts.skipped += batch.skipped
        pending = list(batch.failures)
        for (entry, _), result in zip(batch.images if batch.has_work else [], results, strict=True):
            while pending and pending[0][0] <= entry.number:
                self._fail(pending.pop(0)[1], log)
            if entry.job is None:
                continue
            described = self.description(entry.picture.name, result)
            if isinstance(described, Failure):
                self._fail(described, log)
            else:
                self._write(entry.job, entry.picture, described, log)
        for _, failure in pending:
            self._fail(failure, log)

    def _write(self, sinks: Sequence[Sink], picture: Picture, description: Description, log: FailureLog) -> None:
        try:
            for sink in sinks:
                sink.write(picture, description)
        except OSError as error:
            if error.errno in DISK_FULL or isinstance(sinks[0], Printer):
                raise
            self._fail(Failure(picture.name, f"cannot write {error.filename!r}: {error.strerror}"), log)
        else:
            self.counts.processed += 1

    def _fail(self, failure: Failure, log: FailureLog) -> None:
        self.counts.failed += 1
        if self.job.outputs.strict:
            raise StrictError(f"{failure_line(failure)}: fix it, or leave out --strict")
        log.add(failure)


class _CaptionRun(Run):
    """Generates captions or answers."""

    def __init__(self, model: Model, job: Job, texts: TextSettings, executor: Executor | None) -> None:
        super().__init__(model, job, texts.flags)
        rated = job.outputs.json and texts.question is None  # a JSON key of captions
        pool = texts.pool if texts.pool in (None, "none") else os.path.abspath(texts.pool)
        self._make_task = partial(replace(texts, pool=pool).task, confidence=rated)  # actors run in another folder
        self._texts, self._executor, self._task = texts, executor, self._make_task(model)
        self.verb = "captioned" if texts.question is None else "answered"

    def batches(self, plan: Plan) -> Iterator[tuple[Batch[list[Sink]], Any]]:
        if self._executor is None:
            return super().batches(plan)
        return self._executor.run(walk(self.job.sources), plan, self.job.parallelism.batch_size, self._make_task)

    def compute(self, images: list[RGB], first_image: int) -> Sequence[list[Scored] | None]:
        """Return the texts of each image; None if max_time passed before the first word."""
        return self.model.generate(images, self._task, first_image)

    def description(self, name: str, result: list[Scored] | None) -> Description | Failure:
        if result is None:
            return Failure(name, str(too_late(self._task.settings.max_time)))
        first, texts = result[0], self._texts
        self.counts.cut += finish_reason(first, self._task.settings) == "time"
        captions = [rendered(texts.template, texts.hedged(text), name) for text in result]
        details = (round(first.score, 4), self.name, sum(first.timings), first.truncated, first.confidence)
        return Description(name, captions, *details)


class Printer(Sink):
    """Standard output: the caption of a single image, else name<TAB>caption lines."""

    def __init__(self, as_json: bool, single: str | None) -> None:
        """single: the name of the only image, which needs no name in front."""
        self._json, self._single = as_json, single

    def write(self, picture: Picture, description: Description) -> None:
        if self._json:
            show_json(description.row(timed=True), flush=True)
            return
        for caption in description.captions:
            show(caption if self._single == picture.name else f"{one_line(picture.name)}\t{caption}", flush=True)
