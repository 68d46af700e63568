"""The native loop against Hugging Face `generate`, option by option; batches, threads, signals and wrong options.

The models are tiny, random and new in every run: tests/engines/native/reference.py.
"""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from tests.engines.native import Session, runtime
from tests.engines.native.reference import CONFIGS, Case, hugging_face, inputs, make_case, undecided


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("opt", tmp_path_factory.mktemp("opt"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("wide", tmp_path_factory.mktemp("wide"), images=1)


def test_a_batch_matches_hugging_face(case: Case) -> None:
    """Images that stop early leave our batch. Hugging Face pads them instead."""
    stop = case.said[0]
    options = {"num_beams": 3, "max_new_tokens": 12, "eos_token_ids": [stop]}
    same = replace(case, prompts=[[7, 8]] * 3)
    got = [tokens for [(tokens, _)] in same.generator.generate(same.prefix, same.prompts, options)]
    with torch.no_grad():
        embeds = torch.cat([inputs(same, image, [])["inputs_embeds"] for image in range(3)])
        given = {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2]), "pad_token_id": 0}
        rows = case.model.generate(**given, do_sample=False, num_beams=3, max_new_tokens=12, eos_token_id=[stop])
    for image, row in enumerate(rows.tolist()):
        want = row[: row.index(stop)] if stop in row else row
        want = want[: len(got[image])] if set(want[len(got[image]) :]) == {0} else want  # padding
        single, _ = hugging_face(same, image, options)
        assert got[image] == want or undecided(same, image, options, single)


@pytest.mark.long(4, "graphs of each architecture, traced")
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_graphs_get_the_cores_attention(name: str, tmp_path: Path) -> None:
    """Without it a generator rejects the graph. logit_rows saves logits of a prompt's other positions."""
    make_case(name, tmp_path)
    session = Session(runtime(), str(tmp_path / "llm.onnx"), 1)
    ours = {port for port, *_ in session.inputs} & {"cache_rows", "encoder_rows", "logit_rows"}
    assert ours == {"cache_rows", "logit_rows"} | ({"encoder_rows"} if name == "t5" else set())
    assert [kernel.split()[0] for kernel in session.custom_kernels] == ["attention"]
    with pytest.raises(RuntimeError, match=r"llm.onnx has an attention that .*: export the model again"):
        make_case(name, tmp_path, custom_attention=False)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_steps_equal_one_call(case: Case, num_beams: int) -> None:
    options = {"num_beams": num_beams, "max_new_tokens": 7, "eos_token_ids": case.said[:1]}
    generation = case.generator.begin(case.prefix, case.prompts, options)
    said: list[list[int]] = [[] for _ in case.prompts]
    assert not generation.done
    while not generation.done:
        for image, draw, token in generation.step():
            assert draw == 0
            said[image].append(token)
    results = generation.results()
    assert results == case.generator.generate(case.prefix, case.prompts, options)
    assert said == [tokens for [(tokens, _)] in results]
    assert generation.step() == []


@pytest.mark.long(13, "token for token on traced graphs")
@pytest.mark.parametrize("name", ["opt", "t5"])
def test_rounds_equal_separate_calls(name: str, tmp_path: Path) -> None:
    each = make_case(name, tmp_path)
    rounds = [{"do_sample": True, "num_return_sequences": 4, "seed": 3}, {"num_beams": 3}, {}]
    ways = [{"max_new_tokens": 9, "eos_token_ids": each.said[:1], **options} for options in rounds]
    separate = [each.generator.generate(each.prefix, each.prompts, options) for options in ways]
    together = each.generator.generate_rounds(each.prefix, each.prompts, ways)
    assert [tokens for image in together for tokens, _ in image] == [
        tokens for way in separate for image in way for tokens, _ in image
    ]


def test_closing_a_generation_keeps_its_tokens(case: Case) -> None:
    options = {"max_new_tokens": 7}
    whole = case.generator.generate(case.prefix, case.prompts, options)
    generation = case.generator.begin(case.prefix, case.prompts, options)
    assert [tokens for [(tokens, _)] in generation.results()] == [[]] * 3
    generation.step()
    generation.step()
    generation.close()
    assert generation.done and generation.step() == []
    assert [tokens for [(tokens, _)] in generation.results()] == [tokens[:2] for [(tokens, _)] in whole]


def test_on_token_is_given_every_token(case: Case) -> None:
    options = {"max_new_tokens": 5}
    whole = case.generator.generate(case.prefix, case.prompts, options)
    seen: list[tuple[int, int, int]] = []
    assert case.generator.generate(case.prefix, case.prompts, options, lambda *new: seen.append(new)) == whole
    assert seen == [(image, 0, whole[image][0][0][i]) for i in range(5) for image in range(3)]
    seen.clear()
    cut = case.generator.generate(case.prefix, case.prompts, options, lambda *new: seen.append(new) or len(seen) < 4)
    assert len(seen) == 4
    assert [len(tokens) for [(tokens, _)] in cut] == [2, 2, 2]

    def fail(*_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        case.generator.generate(case.prefix, case.prompts, options, fail)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_deadline_in_the_past_leaves_one_token(case: Case, num_beams: int) -> None:
    options = {"num_beams": num_beams, "max_new_tokens": 7, "max_time": 0.0}
    got = case.generator.generate(case.prefix, case.prompts, options)
    want = case.generator.generate(case.prefix, case.prompts, {"num_beams": num_beams, "max_new_tokens": 1})
    assert [image[0] for image in got] == [image[0] for image in want]


def test_threads_share_a_generator(case: Case) -> None:
    options = {"num_beams": 3, "max_new_tokens": 9, "eos_token_ids": case.said[:1]}
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
        with pytest.raises(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            case.generator.generate(many, [[]] * len(many), options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


BAD_OPTIONS = [
    ({"num_beams": 0}, "num_beams is 0, must be 1 to 1000"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"eos_token_ids": [83]}, "eos token id 83 is outside the vocabulary of 83"),
    ({"early_stopping": "maybe"}, "'true', 'false' or 'never'"),
    ({"num_beams": "3"}, "num_beams must be an integer"),
    ({"num_beams": True}, "num_beams must be an integer"),
    ({"num_beans": 3}, "unknown generation option 'num_beans', choose from num_beams, "),
    ({"num_beams": 80}, "too many"),
    ({"do_sample": True, "num_beams": 2, "num_return_sequences": 3}, "must be 1 to num_beams .2."),
    ({"temperature": 0.0}, "temperature is 0"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    ({"min_p": -1.0}, "min_p is -1"),
    ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
    ({"seed": -1}, "seed must be an integer from 0"),
    ({"bad_words_ids": [[]]}, "a bad word has no tokens"),
    ({"bad_words_ids": [[1, -1]]}, "bad word token id -1"),
    ({"stop_strings": [b"a"]}, "need a vocabulary"),
    ({"stop_strings": ["a"]}, "a list of bytes"),
    ({"forced_prefix": [-5]}, "forced_prefix token id -5"),
    ({"max_time": -1.0}, "max_time is -1"),
    (
        {"num_beams": 0, "top_k": "x", "max_new_tokens": 0, 3: 4},
        "top_k .*name is not a string.*num_beams is 0.*max_new",
    ),
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
    with pytest.raises(RuntimeError, match="token id 83"):
        generate(case.prefix[:1], [[83]], {})
    with pytest.raises(RuntimeError, match="neither prefix nor prompt"):
        generate(case.prefix[:1, :0], [[]], {})
    with pytest.raises(RuntimeError, match="not finite"):
        generate(np.full_like(case.prefix, np.nan), case.prompts, {})
    assert generate(case.prefix[:0], [], {}) == []
