"""The seed that a failure prints repeats its random numbers."""

import random

from . import seeds
from .tiny.bundle import Tiny


def test_session_fixtures_use_the_seed(tiny: Tiny) -> None:
    assert tiny.seed == random.Random(seeds.seed_of("tests", "tiny", "0")).randrange(2**31)


def test_seed_depends_on_the_test_name() -> None:
    name = "tests/test_seeds.py::test_seed_depends_on_the_test_name"
    assert seeds.new_seed() == random.Random(seeds.seed_of(name)).randrange(2**31)
