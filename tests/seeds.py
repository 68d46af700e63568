"""All random numbers of the tests and fuzzers come from one seed: BLIP2RT_TEST_SEED, or a new one that failures print.

A test's numbers depend on the seed and on the test's own name, so one test alone repeats what it did among all others.
"""

import hashlib
import os
import random
import sys

VARIABLE = "BLIP2RT_TEST_SEED"


def session_seed() -> int:
    """The seed of the session; child processes inherit it."""
    return int(os.environ.setdefault(VARIABLE, str(random.SystemRandom().randrange(2**31))))


def seed_of(*names: str) -> int:
    """The seed for these names, below 2 ** 31, derived from the session's."""
    digest = hashlib.sha256("\0".join((str(session_seed()), *names)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def new_seed() -> int:
    """The next seed of the running test or fixture."""
    return random.randrange(2**31)


def start(*names: str) -> None:
    """Seed the generators of Python, numpy and torch for these names."""
    seed = seed_of(*names)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
