"""`blip2rt caption`: pictures -> descriptions -> outputs. Knows the order of things.

What is done is told by the outputs; what was made is written in the order of the pictures, batch by batch. So a run
that is ended at any moment loses what was in the graphs, and the same command goes on with the same result.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import Blip2rtError, OptionError, one_line
from .ahead import Cell, Pace, cells
from .lanes import in_order
from .outputs import FULL, Described, Sink, Text
from .pictures import Fault, Picture, Sources
from .progress import Bar, Counts, Faults, fault_line, say, summary
from .tables import TABLES, table
from .walk import walk
from .wording import Wording

if TYPE_CHECKING:
    from ..language import Scored
    from ..model import Model
    from ..pipeline import Task

BATCH = 16  # pictures that share the steps of the loop, as measured in docs/benchmarks-doors.md


@dataclass(frozen=True)
class Outputs:
    """Where captions go; none of them: standard output."""

    beside: str | None = None  # the extension of a file beside each picture
    xmp: bool = False
    out: str | None = None
    overwrite: bool = False
    json: bool = False  # of what is printed

    @property
    def into_shards(self) -> bool:
        """Whether `out` is a folder, for copies of shards: it has no name of a table."""
        return self.out is not None and os.path.splitext(self.out)[1].lower() not in TABLES

    @property
    def printed(self) -> bool:
        return self.beside is None and self.out is None and not self.xmp


@dataclass(frozen=True)
class Care:
    """errors: a file that lists what failed. strict: end at the first."""

    errors: str | None = None
    strict: bool = False


@dataclass(frozen=True)
class Words:
    """What is said: a caption that goes on from a prompt, or the answer to a question."""

    prompt: str | None
    question: str | None
    options: Mapping[str, Any]
    around: Wording

    @property
    def asked(self) -> str:
        """The flags that shape the text, as a shell takes them."""
        plain, around = Wording(), self.around
        given = (
            ("--ask", self.question),
            ("--prompt", self.prompt),
            ("--prefix", around.prefix),
            ("--suffix", around.suffix),
            ("--template", "" if around.template == plain.template else around.template),
        )
        return shlex.join([word for flag, value in given if value for word in (flag, value)])


class Stopped(Blip2rtError):
    """The first fault of a strict run."""


def caption(model: Model, sources: Sources, words: Words, outputs: Outputs, care: Care, pace: Pace) -> int:
    """Describe pictures; return the exit code of Counts."""
    words.around.check()
    task = model.task(words.prompt, words.question, **words.options)
    run = _Run(model, task, words.around, care.strict)
    printer = Printer(outputs.json, sources.paths[0] if sources.single else None) if outputs.printed else None
    quiet = printer is not None and not any(map(os.path.isdir, sources.paths))
    with contextlib.ExitStack() as stack:
        bar = Bar(sources, run.counts, printer is not None)
        stack.callback(bar.close)
        faults = Faults(care.errors, bar, outputs.json)
        stack.callback(faults.close)
        try:
            makes = partial(_sinks, outputs, model.bundle.manifest.name, words.asked)
            for each, sinks in _parts(sources, outputs, printer, makes, stack):
                decoded = cells(model, walk(each), partial(_todo, sinks), pace)
                for cell, texts in in_order(decoded, run.describe, pace.lanes):
                    bar.clear() if printer is not None else None
                    run.write(cell, texts, faults)
                    bar.show()
                for sink in sinks:
                    sink.finish(run.counts.code == 2)
        except KeyboardInterrupt:
            bar.close()
            if printer is None:
                what = "with --overwrite it begins anew" if outputs.overwrite else "the same command goes on"
                summary(run.counts, "captioned", None, lambda text: say(f"{text}; {what}"))
            raise
    if not quiet or (run.counts.failed and care.errors):
        summary(run.counts, "captioned" if words.question is None else "answered", care.errors, say)
    return run.counts.code


def _parts(
    sources: Sources,
    outputs: Outputs,
    printer: Printer | None,
    makes: Callable[[], list[Sink]],
    stack: contextlib.ExitStack,
) -> Iterator[tuple[Sources, list[Sink]]]:
    """What is written together: each shard that goes into a copy, or all sources."""
    if outputs.into_shards:
        from .shards import Shard, copies

        assert outputs.out is not None
        for path, target in copies(sources, outputs.out):
            shard = Shard(path, target, outputs.beside or ".txt", outputs.overwrite)
            stack.callback(shard.close)
            yield Sources((path,)), [shard]
        return
    sinks: list[Sink] = [printer] if printer is not None else makes()
    for sink in sinks:
        stack.callback(sink.close)
    yield sources, sinks


def _todo(sinks: Sequence[Sink], picture: Picture) -> list[Sink] | Fault | None:
    """The sinks that lack a picture; None: it is done."""
    lacking = []
    for sink in sinks:
        todo = sink.todo(picture)
        if isinstance(todo, Fault):
            return todo
        if todo:
            lacking.append(sink)
    return lacking or None


def _sinks(outputs: Outputs, model: str, asked: str) -> list[Sink]:
    sinks: list[Sink] = []
    if outputs.beside is not None:
        sinks.append(Text(outputs.beside, outputs.overwrite))
    if outputs.xmp:
        from .xmp import Xmp

        sinks.append(Xmp(outputs.overwrite))
    if outputs.out is not None:
        sinks.append(table(outputs.out, outputs.overwrite, model, asked))
    return sinks


class _Run:
    """A model at work on cells of pictures."""

    def __init__(self, model: Model, task: Task, around: Wording, strict: bool) -> None:
        self.model, self._task, self._around, self._strict = model, task, around, strict
        self._name = model.bundle.manifest.name
        self.counts = Counts()

    def describe(self, cell: Cell[list[Sink]]) -> list[list[Scored]]:
        """Put a cell through the graphs; one with nothing new gets no texts. Any thread may."""
        return self.model.generate([rgb for _, rgb in cell.rows], self._task, cell.first) if cell.new else []

    def write(self, cell: Cell[list[Sink]], texts: Sequence[list[Scored]], faults: Faults) -> None:
        """Hand each text to the sinks that lack it, in the order of the pictures."""
        self.counts.before += cell.done
        left = list(cell.faults)
        for (entry, _), scored in zip(cell.rows if cell.new else [], texts, strict=True):
            while left and left[0][0] <= entry.number:
                self._fail(left.pop(0)[1], faults)
            if entry.what is None:
                continue
            captions = [self._around.around(text.text, entry.picture.name) for text in scored]
            about = (round(scored[0].score, 4), self._name, sum(scored[0].timings), scored[0].truncated)
            described = Described(entry.picture.name, captions, *about)
            self._write(entry.what, entry.picture, described, faults)
        for _, fault in left:
            self._fail(fault, faults)

    def _write(self, sinks: Sequence[Sink], picture: Picture, described: Described, faults: Faults) -> None:
        try:
            for sink in sinks:
                sink.write(picture, described)
        except OSError as error:
            if error.errno in FULL or isinstance(sinks[0], Printer):
                raise
            self._fail(Fault(picture.name, f"cannot write {error.filename!r}: {error.strerror}"), faults)
        else:
            self.counts.made += 1

    def _fail(self, fault: Fault, faults: Faults) -> None:
        self.counts.failed += 1
        if self._strict:
            raise Stopped(f"{fault_line(fault)}: mend it, or leave out --strict")
        faults.add(fault)


class Printer:
    """Standard output: the caption of one image; of several, name<TAB>caption a line."""

    def __init__(self, as_json: bool, single: str | None) -> None:
        """single: the name of the only image, where no name need be said."""
        self.as_json, self._single = as_json, single

    def todo(self, picture: Picture) -> bool | Fault:
        return True

    def write(self, picture: Picture, described: Described) -> None:
        if self.as_json:
            row = described.row(timed=True) | {"caption": described.captions[0]}
            print(json.dumps(row, ensure_ascii=False), flush=True)
            return
        for caption in described.captions:
            print(caption if self._single == picture.name else f"{one_line(picture.name)}\t{caption}", flush=True)

    def finish(self, failed: bool) -> None:
        pass

    def close(self) -> None:
        pass


def check(outputs: Outputs, sources: Sources, care: Care) -> None:
    """Raise OptionError for outputs that do not go together."""
    files = [("--out", outputs.out), ("--errors", care.errors), *(("--from-file", name) for name in sources.lists)]
    known: dict[str, str] = {}
    for flag, name in files:
        if name is None or (os.path.exists(name) and not os.path.isfile(name)):
            continue
        first = known.setdefault(os.path.realpath(name), flag)
        if first != flag:
            raise OptionError(f"{first} and {flag} are one file, {name!r}: give another one")
    if outputs.overwrite and outputs.printed:
        raise OptionError("overwrite is given, but nothing is written: give --write, --xmp or --out")
    if outputs.json and not outputs.printed:
        raise OptionError("--json is of what is printed, and captions go to files: give --out FILE.jsonl")
    if outputs.into_shards and not any(path.endswith(".tar") for path in sources.paths):
        raise OptionError(f"out is {outputs.out!r}: give a file that ends with {', '.join(TABLES)}")
    if outputs.xmp and outputs.into_shards:
        raise OptionError(f"--xmp writes beside pictures, and --out {outputs.out!r} takes shards: leave out --xmp")
    if outputs.xmp and (outputs.beside or "").lower().lstrip(".") == "xmp":
        raise OptionError("--xmp and --caption-extension '.xmp' would write one file: leave out one of them")
