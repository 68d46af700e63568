"""The native loop step by step, with signals and wrong options (against Hugging Face: test_parity.py)."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.engines.native import Session, runtime
from tests.engines.native.reference import CONFIGS, Case, make_case, open_graphs


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("opt", tmp_path_factory.mktemp("opt"))


@pytest.mark.long(4, "graphs of each architecture, traced")
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_graphs_get_the_cores_attention(name: str, tmp_path: Path) -> None:
    """Without it a generator rejects the graph. logit_rows saves logits of a prompt's other positions."""
    model = make_case(name, tmp_path).model
    session = Session(runtime(), str(tmp_path / "llm.onnx"), 1)
    ours = {port for port, *_ in session.inputs} & {"cache_rows", "encoder_rows", "logit_rows"}
    assert ours == {"cache_rows", "logit_rows"} | ({"encoder_rows"} if name == "t5" else set())
    assert [kernel.split()[0] for kernel in session.custom_kernels] == ["attention"]
    with pytest.raises(RuntimeError, match=r"llm.onnx has an attention that .*: export the model again"):
        open_graphs(model, tmp_path, custom_attention=False)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_steps_equal_one_call(case: Case, num_beams: int) -> None:
    options = {"num_beams": num_beams, "max_new_tokens": 7, "eos_token_ids": case.said[:1]}
    generation = case.generator.begin(case.prefix, case.prompts, options)
    said: list[list[int]] = [[] for _ in case.prompts]
    assert not generation.done and [tokens for [(tokens, _)] in generation.results()] == [[]] * 3
    while not generation.done:
        for image, draw, token in generation.step():
            assert draw == 0
            said[image].append(token)
    results = generation.results()
    assert results == case.generator.generate(case.prefix, case.prompts, options)
    assert said == [tokens for [(tokens, _)] in results] and generation.step() == []
    closed = case.generator.begin(case.prefix, case.prompts, options)
    tokens = [[token for image, _, token in closed.step() if image == 0] for _ in range(2)]
    closed.close()
    assert closed.done and closed.step() == []
    assert num_beams > 1 or closed.results()[0][0][0] == [*tokens[0], *tokens[1]]


@pytest.mark.long(7, "token for token on traced graphs")
def test_rounds_equal_separate_calls(tmp_path: Path) -> None:
    each = make_case("t5", tmp_path)
    rounds = [{"do_sample": True, "num_return_sequences": 4, "seed": 3}, {"num_beams": 3}, {}]
    ways = [{"max_new_tokens": 9, "eos_token_ids": each.said[:1], **options} for options in rounds]
    separate = [each.generator.generate(each.prefix, each.prompts, options) for options in ways]
    together = each.generator.generate_rounds(each.prefix, each.prompts, ways)
    wanted = [tokens for way in separate for image in way for tokens, _ in image]
    assert [tokens for image in together for tokens, _ in image] == wanted


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


BAD_OPTIONS = [  # of the parser: tests/runtime/test_pipeline.py
    ({"eos_token_ids": [83]}, "eos token id 83 is outside the vocabulary of 83"),
    ({"early_stopping": "maybe"}, "'true', 'false' or 'never'"),
    ({"num_beams": "3"}, "num_beams must be an integer"),
    ({"num_beans": 3}, "unknown generation option 'num_beans', choose from num_beams, "),
    ({"num_beams": 80}, "too many"),
    ({"seed": -1}, "seed must be an integer from 0"),
    ({"bad_words_ids": [[]]}, "a bad word has no tokens"),
    ({"bad_words_ids": [[1, -1]]}, "bad word token id -1"),
    ({"stop_strings": [b"a"]}, "need a vocabulary"),
    ({"stop_strings": ["a"]}, "a list of bytes"),
    ({"forced_prefix": [-5]}, "forced_prefix token id -5"),
    ({"num_beams": 0, "top_k": "x", "max_time": -1.0, 3: 4}, "top_k .*name is not a string.*num_beams is 0.*max_time"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_named(case: Case, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        case.generator.generate(case.prefix, case.prompts, options)


def test_bad_inputs_are_named(case: Case) -> None:
    for prefix, prompts, message in (
        (case.prefix, case.prompts[:2], "3 images but there are 2 prompts"),
        (case.prefix.astype(np.float64), case.prompts, "float32"),
        (case.prefix[:, :, :8], case.prompts, "float32"),
        (case.prefix[:1], [[83]], "token id 83"),
        (case.prefix[:1, :0], [[]], "neither prefix nor prompt"),
        (np.full_like(case.prefix, np.nan), case.prompts, "not finite"),
    ):
        with pytest.raises(RuntimeError, match=message):
            case.generator.generate(prefix, prompts, {})
    assert case.generator.generate(case.prefix[:0], [], {}) == []
