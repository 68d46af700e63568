"""The backend trt as a whole on the stand-in (tests/gpu_stand_in.py): its texts are those of the native loop on ONNX
Runtime; and what it says where the machine cannot do what it should."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import blip2rt
from blip2rt import backends, gpu
from blip2rt import cuda as cuda_module
from blip2rt.bundle import read
from blip2rt.errors import BackendError, OptionError
from blip2rt.trt_engines import Options
from tests import tiny_trt
from tests.gpu_stand_in import Driver, Misuse, Nvrtc, TensorRT

SEED = random.randrange(2**31)
GPU = gpu.Gpu("Orin", (8, 7), 8 << 30, (12, 6), True, 16)
ENGINES = Options(max_batch=2, max_beams=4, capacity=48)


@dataclass
class Case:
    """The same tiny model as a bundle of either target, in float32."""

    ort: Path
    trt: Path
    name: str

    def native(self) -> Any:
        return backends.create("ort", read(self.ort), 1)

    def inputs(self, images: int) -> tuple[np.ndarray, list[list[int]]]:
        rng = np.random.default_rng(SEED)
        spec = read(self.ort).manifest.llm
        prefix = rng.normal(size=(images, spec.prefix_length, spec.hidden_size)).astype(np.float32)
        prompts = [rng.integers(4, spec.vocab_size, size).tolist() for size in rng.integers(0, 5, images)]
        return prefix, prompts


_cases: dict[str, Case] = {}


def case_of(name: str, folder: pytest.TempPathFactory) -> Case:
    if name not in _cases:
        print(f"seed {SEED}")
        where = folder.mktemp(name)
        if name == "tiny":
            weights = tiny_trt.weights_of(np.random.default_rng(SEED))
            made = [tiny_trt.write(where / target, weights, target) for target in ("ort", "trt")]
            _cases[name] = Case(*made, name)
            return _cases[name]
        torch = pytest.importorskip("torch")
        pytest.importorskip("transformers")
        pytest.importorskip("onnxscript")
        from export import cli
        from tests import tiny_blip2

        torch.manual_seed(SEED)
        source = tiny_blip2.generative(where / "hf", tiny_blip2.TEXT_CONFIGS[name]())
        for target in ("ort", "trt"):
            arguments = ["--ckpt", str(source), "--out", str(where / target), "--target", target, "--no-verify",
                         "--precision", "vision=fp32,qformer=fp32,llm=fp32"]  # fmt: skip
            assert cli.main(arguments) == 0
        _cases[name] = Case(where / "ort", where / "trt", name)
    return _cases[name]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "llama", "t5")]


@pytest.fixture(params=["tiny", *SLOW])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, tmp_path_factory)


@pytest.fixture
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of("tiny", tmp_path_factory)


@dataclass
class Machine:
    """The stand-in machine that the backend finds."""

    driver: Driver
    trt: TensorRT

    def load(self, case: Case, engines: Options = ENGINES) -> Any:
        return backends.create("trt", read(case.trt), None, "cuda", engines)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    driver = Driver()
    found = Machine(driver, TensorRT(driver))
    monkeypatch.setattr("blip2rt.trt_builder.load_tensorrt", lambda name=None: found.trt)
    monkeypatch.setattr("blip2rt.trt_builder.identity", lambda trt: f"tensorrt {trt.__version__}")
    monkeypatch.setattr("blip2rt.trt_builder.builds_for_any", lambda trt: False)
    monkeypatch.setattr(cuda_module, "load_bindings", lambda: (found.driver, Nvrtc()))
    monkeypatch.setattr("blip2rt.gpu.find", lambda: GPU)
    monkeypatch.setenv("BLIP2RT_CACHE", str(tmp_path / "engines"))
    return found


def random_options(rng: random.Random, vocab: int, eos: list[int]) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 9), "eos_token_ids": rng.choice([[], eos[:1], eos])}
    options["num_beams"] = rng.randint(1, 4)
    if rng.random() < 0.4:
        options |= {"do_sample": True, "seed": rng.randrange(10**6), "temperature": rng.uniform(0.5, 2)}
        options |= rng.choice([{}, {"top_k": rng.randint(1, vocab)}, {"top_p": rng.random()}, {"min_p": 0.1},
                               {"top_k": 9, "top_p": 0.7}])  # fmt: skip
        if options["num_beams"] == 1:
            options["num_return_sequences"] = rng.randint(1, 4)
    if options["num_beams"] > 1:
        options |= {"num_return_sequences": rng.randint(1, options["num_beams"]),
                    "length_penalty": rng.choice([1.0, 0.0, -1.0, 2.0]),
                    "early_stopping": rng.choice(["true", "false", "never"])}  # fmt: skip
    extra = rng.choice([{}, {}, {"repetition_penalty": rng.choice([1.4, 0.8])}, {"no_repeat_ngram_size": 2},
                        {"bad_words_ids": [[eos[0]], [rng.randrange(vocab)], [rng.randrange(vocab) for _ in range(2)]]},
                        {"min_new_tokens": 3}, {"forced_prefix": [rng.randrange(vocab), 5]}])  # fmt: skip
    return options | extra


def tokens(sequences: Any) -> Any:
    return [[sequence for sequence, _ in image] for image in sequences]


@pytest.mark.parametrize("turn", range(3))
def test_the_native_loops_texts_with_random_options(case: Case, machine: Machine, turn: int) -> None:
    rng = random.Random(SEED + turn)
    prefix, prompts = case.inputs(3)
    native, device = case.native(), machine.load(case)
    vocab = read(case.ort).manifest.llm.vocab_size
    said = native.generate(prefix, prompts, {"max_new_tokens": 8, "eos_token_ids": []})
    eos = sorted({token for [(sequence, _)] in said for token in sequence[2:4]})
    texts = [bytes([97 + i % 7]) * (1 + i % 2) for i in range(vocab)]
    for _ in range(12):
        options = random_options(rng, vocab, eos)
        stops = [b"ab", b"c"] if rng.random() < 0.2 else None
        both = []
        for backend in (native, device):
            more = {} if stops is None else {"stop_strings": stops, "vocabulary": backend.vocabulary(texts)}
            both.append(backend.generate(prefix, prompts, {**options, **more}))
        want, got = both
        assert tokens(got) == tokens(want), f"seed {SEED}, turn {turn}, {options}, {stops}"
        np.testing.assert_allclose(
            [score for image in got for _, score in image], [score for image in want for _, score in image],
            rtol=2e-4, atol=2e-4,
        )  # fmt: skip
    assert "graph" in machine.driver.calls  # steps were replayed

