"""blip2rt as a model of lmms-eval, against the interface that it documents."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import blip2rt
from blip2rt.errors import OptionError
from tests.tiny.bundle import Tiny, with_likelihood_weight

CAPTION, ASK = "Provide a one-sentence caption for the provided image.", "who is in the grass?"
INSTRUCTIONS = "\nAnswer the question using a single word or phrase."


@dataclass
class Instance:
    """lmms-eval's request."""

    args: tuple[Any, ...]


class Lmms:
    """lmms-eval's base class of models."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The integration, on stand-ins for the two modules of lmms-eval that it imports."""
    for name, contents in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": lambda name, simple_class_path: (name, simple_class_path)},
    }.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "blip2rt.integrations.lmms_eval", raising=False)
    return importlib.import_module("blip2rt.integrations.lmms_eval")


@pytest.fixture
def images(photo: Any) -> list[Any]:
    return [Image.fromarray(photo(20 + i, 30)) for i in range(9)]


def requests_for(model: Any, images: list[Any], second: Any, prompts: list[str]) -> list[Instance]:
    """Requests of one task; each document is an image."""
    model.task_dict = {"local": {"test": images}}
    return [
        Instance((prompt, second, lambda image: [image], i, "local", "test"))
        for i, prompt in enumerate(prompts[: len(images)])
    ]


def test_lmms_eval_gets_captions_and_answers(tiny: Tiny, lmms_eval: Any, images: list[Any]) -> None:
    name, path = lmms_eval.manifest
    assert name == "blip2rt" and path == "blip2rt.integrations.lmms_eval.Blip2rt"
    model = lmms_eval.Blip2rt(str(tiny.path), batch_size=4, device="cuda:0", max_batch_size=None, threads=1)
    own = blip2rt.load(tiny.path, threads=1)
    given = {"max_new_tokens": 5, "num_beams": 2, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    prompts = [CAPTION, ASK + INSTRUCTIONS] * 4 + [CAPTION]
    want = [
        own.caption(image, max_new_tokens=5, num_beams=2)
        if prompt == CAPTION
        else own.ask(image, ASK, max_new_tokens=5, num_beams=2)
        for image, prompt in zip(images, prompts, strict=True)
    ]
    assert model.generate_until(requests_for(model, images, given, prompts)) == want
    first = str(want[0]).split()[-1]
    cut = model.generate_until(requests_for(model, images[:1], {**given, "until": first}, prompts))
    assert cut == [str(want[0]).partition(first)[0]]
    greedy = lmms_eval.Blip2rt(str(tiny.path), threads=1, num_beams=1)  # takes precedence over the task's
    one = own.caption(images[0], max_new_tokens=5, num_beams=1)
    assert greedy.generate_until(requests_for(greedy, images[:1], given, prompts)) == [one]
    with pytest.raises(OptionError, match="unknown beams: choose from backend, threads, num_beams"):
        lmms_eval.Blip2rt(str(tiny.path), beams=2)


def test_lmms_eval_gets_losses(tiny: Tiny, lmms_eval: Any, images: list[Any], tmp_path: Path) -> None:
    bundle = with_likelihood_weight(tiny, tmp_path / "weighs", 1.0)
    model, own = lmms_eval.Blip2rt(str(bundle), threads=1), blip2rt.load(bundle, threads=1)
    found = model.loglikelihood(requests_for(model, images, " a dog", [CAPTION] * 9))
    want = own.likelihoods(own.vision_features(images), ["a dog"] * 9)
    assert [loss for loss, _ in found] == pytest.approx(-want, abs=1e-4) and not any(greedy for _, greedy in found)
    targets = requests_for(model, images, lambda image: "red cat", [CAPTION] * 9)
    assert model.loglikelihood(targets)[0][0] == pytest.approx(
        -own.likelihoods(own.vision_features(images[:1]), ["red cat"])[0], abs=1e-4
    )
