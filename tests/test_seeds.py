"""One seed repeats all: what a failure prints makes the same numbers again."""

from __future__ import annotations

import random

from . import seeds
from .tiny.bundle import Tiny


def test_fixtures_of_a_session_come_from_its_seed(tiny: Tiny) -> None:
    assert tiny.seed == random.Random(seeds.seed_of("tests", "tiny", "0")).randrange(2**31)


def test_a_test_comes_from_the_seed_and_its_name() -> None:
    name = "tests/test_seeds.py::test_a_test_comes_from_the_seed_and_its_name"
    assert seeds.new_seed() == random.Random(seeds.seed_of(name)).randrange(2**31)
