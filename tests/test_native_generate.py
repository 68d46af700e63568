"""The native loop against Hugging Face `generate`, token for token: tiny random models, fresh seeds, greedy and beams.

Tokens may only differ where Hugging Face itself is undecided: where noise of 1e-5 in its logits changes its own answer.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from export import graphs, llm
from tests.native import Generator, Session, runtime

SEED = random.randrange(2**31)
HIDDEN, VOCAB = 64, 83
SMALL = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB,
         "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(intermediate_size=96, num_key_value_heads=2, **SMALL),
    "opt": lambda: transformers.OPTConfig(ffn_dim=96, word_embed_proj_dim=HIDDEN, dropout=0.0, **SMALL),
}


@dataclass
class Case:
    """A model in both worlds, and a batch of images with unequal prompts."""

    model: Any
    generator: Any
    prefix: np.ndarray
    prompts: list[list[int]]
    stops: list[int]  # tokens which the model likes to say


def prompt_embeds(case: Case, image: int) -> torch.Tensor:
    """The prefix and the prompt of one image: (1, S, D)"""
    ids = torch.tensor([case.prompts[image]], dtype=torch.int64)
    prompt = case.model.get_input_embeddings()(ids)
    return torch.cat((torch.from_numpy(case.prefix[image : image + 1]), prompt), dim=1)


class Noise(transformers.LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + (torch.rand_like(scores) - 0.5) * 2e-5


def hugging_face(case: Case, image: int, options: dict[str, Any], noise: bool = False) -> list[list[int]]:
    """What `generate` says about one image, new tokens without the stop token and padding."""
    given = dict(options)
    stops = given.pop("eos_token_ids")
    given["early_stopping"] = {"true": True, "false": False, "never": "never"}[given.pop("early_stopping", "false")]
    if given["num_beams"] == 1:
        given = {key: given[key] for key in ("num_beams", "max_new_tokens", "min_new_tokens") if key in given}
    with torch.no_grad():
        output = case.model.generate(
            inputs_embeds=prompt_embeds(case, image),
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=transformers.LogitsProcessorList([Noise()] if noise else []),
            **given,
        )
    case.scores = output.get("sequences_scores")
    sequences = []
    for row in output.sequences.tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        sequences.append(row[:end])
    return sequences


def undecided(case: Case, image: int, options: dict[str, Any], want: list[list[int]]) -> bool:
    return any(hugging_face(case, image, options, noise=True) != want for _ in range(10))


def compare(case: Case, **options: Any) -> None:
    options = {"num_beams": 1, "max_new_tokens": 9, "eos_token_ids": case.stops[:1], **options}
    got = case.generator.generate(case.prefix, case.prompts, options)
    for image in range(len(case.prompts)):
        want = hugging_face(case, image, options)
        scores = case.scores
        tokens = [sequence for sequence, _ in got[image]]
        if tokens != want and undecided(case, image, options, want):
            continue
        assert tokens == want, f"seed {SEED}, image {image}, {options}"
        if scores is not None:
            np.testing.assert_allclose([score for _, score in got[image]], scores, rtol=1e-4, atol=1e-4)


def make_case(name: str, folder: Path) -> Case:
    print(f"seed {SEED}")  # pytest shows it when a test fails
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the models are too small to share
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    model.generation_config = transformers.GenerationConfig()
    for parameter in model.parameters():  # biases and norms start at 0 and 1: hide nothing behind that
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.get_output_embeddings().weight.data.mul_(3)  # decided opinions: few near ties
    for graph, traced in (("llm", llm.trace_llm(model)), ("embed", graphs.trace(llm.embed_part(model)))):
        graphs.save(traced, folder / f"{graph}.onnx", None)
    sessions = [Session(runtime(), str(folder / f"{graph}.onnx"), 1) for graph in ("embed", "llm")]
    shape = llm.geometry(model)
    generator = Generator(*sessions, shape.layers, shape.kv_heads, shape.head_dim, shape.hidden_size, shape.vocab_size)

    rng = np.random.default_rng(SEED)
    prefix = rng.normal(size=(3, 3, HIDDEN)).astype(np.float32)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in (2, 0, 5)]
    case = Case(model, generator, prefix, prompts, [])
    free = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 8, "eos_token_ids": []}
    said = Counter(token for image in range(3) for row in hugging_face(case, image, free) for token in row[2:])
    case.stops = [token for token, _ in said.most_common(4)]
    return case


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("stops", [0, 1, 3])
@pytest.mark.parametrize("shortest", [0, 1, 6])
def test_greedy(case: Case, stops: int, shortest: int) -> None:
    compare(case, min_new_tokens=shortest, eos_token_ids=case.stops[:stops])


@pytest.mark.parametrize("early_stopping", ["true", "false", "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 1.0, 2.5])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_beams(case: Case, num_beams: int, length_penalty: float, early_stopping: str) -> None:
    compare(case, num_beams=num_beams, num_return_sequences=num_beams, length_penalty=length_penalty,
            early_stopping=early_stopping, eos_token_ids=case.stops[:2])  # fmt: skip


@pytest.mark.parametrize("stops", [0, 2, 4])
@pytest.mark.parametrize("shortest", [0, 4])
@pytest.mark.parametrize("longest", [1, 2, 11])
def test_beams_with_limits(case: Case, stops: int, shortest: int, longest: int) -> None:
    compare(case, num_beams=3, num_return_sequences=2, eos_token_ids=case.stops[:stops],
            min_new_tokens=min(shortest, longest), max_new_tokens=longest)  # fmt: skip


def test_a_batch_says_what_hugging_face_says_of_the_batch(case: Case) -> None:
    """Images that stop early leave our batch; Hugging Face keeps them and must not let them change."""
    options = {"num_beams": 3, "max_new_tokens": 12, "eos_token_ids": case.stops[:1]}
    same = Case(case.model, case.generator, case.prefix, [[7, 8]] * 3, case.stops)
    got = [tokens for [(tokens, _)] in same.generator.generate(same.prefix, same.prompts, options)]
    with torch.no_grad():
        embeds = torch.cat([prompt_embeds(same, image) for image in range(3)])
        rows = case.model.generate(
            inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), do_sample=False, pad_token_id=0,
            num_beams=3, max_new_tokens=12, eos_token_id=case.stops[:1],
        )  # fmt: skip
    for image, row in enumerate(rows.tolist()):
        want = row[: row.index(case.stops[0])] if case.stops[0] in row else row
        want = want[: len(got[image])] if set(want[len(got[image]) :]) == {0} else want  # padding
        single = hugging_face(same, image, options)
        assert got[image] == want or undecided(same, image, options, single), f"seed {SEED}"


def test_threads_share_a_generator(case: Case) -> None:
    options = {"num_beams": 3, "max_new_tokens": 9, "eos_token_ids": case.stops[:1]}
    want = case.generator.generate(case.prefix, case.prompts, options)
    results: list[Any] = []

    def work() -> None:
        for _ in range(10):
            results.append(case.generator.generate(case.prefix, case.prompts, options))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(result == want for result in results)


def test_a_signal_ends_the_call(case: Case) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    many = np.repeat(case.prefix, 100, axis=0)
    options = {"num_beams": 8, "max_new_tokens": 55, "eos_token_ids": []}  # seconds of work
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.monotonic()
        with pytest.raises(Interrupted):
            case.generator.generate(many, [[]] * len(many), options)
        print(f"{time.monotonic() - start:.2f} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


BAD_OPTIONS = [
    ({"num_beams": 0}, "num_beams is 0"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"eos_token_ids": [VOCAB]}, "outside the vocabulary"),
    ({"early_stopping": "maybe"}, "'true', 'false' or 'never'"),
    ({"num_beams": "3"}, "num_beams must be an integer"),
    ({"num_beans": 3}, "unknown generation option 'num_beans'"),
    ({"num_beams": 80}, "too many"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_named(case: Case, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        case.generator.generate(case.prefix, case.prompts, options)


def test_bad_inputs_are_named(case: Case) -> None:
    generate = case.generator.generate
    with pytest.raises(RuntimeError, match="3 images but there are 2 prompts"):
        generate(case.prefix, case.prompts[:2], {})
    with pytest.raises(RuntimeError, match="float32"):
        generate(case.prefix.astype(np.float64), case.prompts, {})
    with pytest.raises(RuntimeError, match="float32"):
        generate(case.prefix[:, :, :8], case.prompts, {})
    with pytest.raises(RuntimeError, match=f"token id {VOCAB}"):
        generate(case.prefix[:1], [[VOCAB]], {})
    with pytest.raises(RuntimeError, match="neither prefix nor prompt"):
        generate(case.prefix[:1, :0], [[]], {})
    with pytest.raises(RuntimeError, match="not finite"):
        generate(np.full_like(case.prefix, np.nan), case.prompts, {})
    assert generate(case.prefix[:0], [], {}) == []
