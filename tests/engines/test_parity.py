"""The native loop against Hugging Face `generate` on random (model, options, batch) cases, fresh seeds in every run."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from tests.engines.native.reference import CONFIGS, Case, compare, make_case, random_options
from tests.seeds import new_seed

pytestmark = pytest.mark.long(43)

CASES = 320
PARTS = 8


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return [make_case(name, tmp_path_factory.mktemp(name), images=2) for name in sorted(CONFIGS)]


@pytest.mark.parametrize("part", range(PARTS))
def test_random_options_say_what_hugging_face_says(cases: list[Case], part: int) -> None:
    compare_some(cases, CASES // PARTS)


def test_random_options_say_the_same_with_onnx_runtimes_attention(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As on a GPU and with older releases of ONNX Runtime: what was read is copied to every beam."""
    names = sorted(CONFIGS)
    cases = [make_case(name, tmp_path_factory.mktemp(name), images=2, custom_attention=False) for name in names]
    compare_some(cases, CASES // PARTS)


def compare_some(cases: list[Case], count: int) -> None:
    seed = new_seed()
    print(f"options of seed {seed}")
    rng = random.Random(seed)
    for _ in range(count):
        case = rng.choice(cases)
        compare(case, random_options(rng, case))
