"""The native loop against Hugging Face `generate` on random (model, options, batch) cases, fresh seeds in every run."""

import random

import pytest

from tests.engines.native.reference import CONFIGS, Case, compare, make_case, random_options
from tests.seeds import new_seed

pytestmark = pytest.mark.long(43, "token for token with transformers on traced graphs")

CASES = 320
PARTS = 8


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return [make_case(name, tmp_path_factory.mktemp(name), images=2) for name in sorted(CONFIGS)]


@pytest.mark.parametrize("part", range(PARTS))
def test_random_options_match_hugging_face(cases: list[Case], part: int) -> None:
    seed = new_seed()
    print(f"options of seed {seed}")
    rng = random.Random(seed)
    for _ in range(CASES // PARTS):
        case = rng.choice(cases)
        compare(case, random_options(rng, case))
