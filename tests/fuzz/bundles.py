"""Alter the graphs of a bundle, whose hashes and declared shapes stay valid, and make every call of Python and C."""

import contextlib
import functools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import blip2rt
from blip2rt.errors import Blip2rtError
from blip2rt.structured import fill
from tests.c.library import CError, CModel
from tests.fuzz.mutants import mutate
from tests.seeds import session_seed
from tests.tiny.bundle import (
    CALIBRATION,
    calibrated,
    changed,
    tiny_bundle,
    with_likelihood_weight,
    with_nodes,
    with_pool,
)

PHOTO = np.full((9, 9, 3), 90, np.uint8)
PAIR = [PHOTO, np.full((9, 9, 3), 20, np.uint8)]
SCHEMA = {"type": "object", "properties": {"who": {"enum": ["a dog", "a cat"]}, "red": {"type": "boolean"}}}
COMPONENTS = "vision qformer embed llm image_embed text_embed itm".split()
# What a graph may do to one of its outputs, named made.
ENDINGS = [f"Slice(made, {start}, {end}, {axis})" for start, end in ("zz", "zo", "ol", "zt") for axis in "zot"]
ENDINGS += [f"Concat <axis = {axis}> (made, made)" for axis in (0, 1, 2)]
ENDINGS += [f"{kind} <keepdims = {kept}> (made)" for kind in ("ReduceSum", "ReduceMean") for kept in (0, 1)]
ENDINGS += [f"{kind} <keepdims = 0> (made, {axis})" for kind in ("ReduceSum", "ReduceL2") for axis in "zo"]
ENDINGS += [f"Cast <to = {dtype}> (made)" for dtype in (6, 7, 9, 10)]
ENDINGS += [f"Unsqueeze(made, {axis})" for axis in "zol"] + ["Squeeze(made)", "Reshape(made, l)", "Shape(made)"]
ENDINGS += ["Transpose(made)", "Gather(made, t)", "Log(made)", "Neg(made)", "Div(made, made)", "Identity(made)"]
NAMES = {"z": "zero", "o": "one", "t": "two", "l": "last"}


@functools.cache
def whole() -> Path:
    """A tiny bundle that can do everything."""
    folder = Path(tempfile.mkdtemp(prefix="blip2rt-fuzz-"))
    plain = tiny_bundle(folder / "plain", session_seed())
    weighted = with_likelihood_weight(plain, folder / "whole", 0.4)
    return with_pool(calibrated(weighted, CALIBRATION), ["a dog runs", "a red cat sits", "the man in the grass"])


def alter(folder: Path, rng: random.Random) -> None:
    """Append a node to a graph, or make a few changes to its structure."""
    component = rng.choice(COMPONENTS)
    file = folder / f"{component}.onnx"
    model = onnx.load(file)
    if rng.random() < 0.5:
        output = rng.choice(model.graph.output).name
        call, _, operands = rng.choice(ENDINGS).rpartition("(")
        named = ", ".join(NAMES.get(each, each) for each in operands.rstrip(")").split(", "))
        with_nodes(folder, component, output, f"{output} = {call}({named})")
    else:
        mutate(model, rng)
        for _ in range(rng.choice([0, 0, 1, 2])):
            with contextlib.suppress(Exception):  # a tensor without its values
                mutate(model, rng)
        file.unlink()
        file.write_bytes(model.SerializeToString())
        changed(folder, file.name)


def python_calls(model: blip2rt.Model) -> Iterator[Callable[[], Any]]:
    """Every call of a model that runs graphs."""
    yield lambda: model.caption(PAIR, scores=True)
    yield lambda: model.caption(PHOTO, num_captions=2, do_sample=True, num_beams=1)
    yield lambda: model.caption(PHOTO, prompt="a dog", pool=False)
    yield lambda: model.ask(PAIR, ["is there a dog?", "who runs?"])
    yield lambda: list(model.stream(PHOTO, num_beams=1))
    chats = list[Any]()
    yield lambda: chats.append(model.chat(PHOTO))
    yield lambda: [chat.ask(question) for chat in chats for question in ("what runs?", "is it red?")]
    yield lambda: model.match([*PAIR, PHOTO], ["a dog", "a cat", "red"])
    yield lambda: model.sees(PAIR, ["a dog", "a cat runs"])
    yield lambda: fill(model, PHOTO, SCHEMA)
    yield lambda: model.tag(PAIR, ["dog", "cat", "man"])
    yield lambda: model.embed_image(PAIR)
    yield lambda: model.embed_text(["a dog", "a cat", ""])


def c_calls(model: CModel) -> Iterator[Callable[[], Any]]:
    """Every call of the C library that runs graphs."""
    yield lambda: model.caption(num_captions=2)
    yield lambda: model.confidences(2)
    yield lambda: model.ask("is there a dog?")
    yield lambda: model.ask("who runs?")
    yield lambda: model.chat_ask(model.chat(), "what runs?")
    yield lambda: model.match("a dog")
    yield lambda: model.sees("a dog")
    yield lambda: model.choose("who runs?", ["a dog", "a cat"])
    yield lambda: model.tag(["dog", "cat", "man"])
    yield model.embed
    yield lambda: model.embed("a dog")


def bundle(data: bytes, folder: Path) -> None:
    """A whole bundle with altered graphs, in Python and C. What a call reports is one line; nothing else is raised."""
    rng = random.Random(data)
    for file in whole().iterdir():
        shutil.copy(file, folder)
    alter(folder, rng)
    runtime = rng.choice(["ort", "core"])

    def report(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Blip2rtError, CError) as error:
            assert str(error).isprintable(), error
        return None

    model = report(lambda: blip2rt.load(folder, backend=runtime, threads=1))
    for call in python_calls(model) if model else ():
        report(call)
    runtime = "onnxruntime" if runtime == "ort" else "core"
    loaded = report(lambda: CModel(folder, runtime=runtime, threads=1))
    if loaded:
        report(lambda: loaded.use(PHOTO))
        for call in c_calls(loaded) if loaded.features else ():
            report(call)
        loaded.close()
