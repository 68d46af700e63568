"""Every random number of the tests comes from one seed: BLIP2RT_TEST_SEED, or a fresh one that a failure prints.

A test's numbers depend on the seed and on the test's own name, so one test alone repeats what it did among all others.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys

VARIABLE = "BLIP2RT_TEST_SEED"


def session_seed() -> int:
    """The seed of all tests; processes that the tests start inherit it."""
    return int(os.environ.setdefault(VARIABLE, str(random.SystemRandom().randrange(2**31))))


def seed_of(*names: str) -> int:
    """The seed of what is called `names`, below 2 ** 31: always the same with the same seed of all tests."""
    digest = hashlib.sha256("\0".join((str(session_seed()), *names)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def new_seed() -> int:
    """The next seed of the test or fixture that runs."""
    return random.randrange(2**31)


def start(*names: str) -> None:
    """Seed Python's, numpy's and torch's generators for what is called `names`."""
    seed = seed_of(*names)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
