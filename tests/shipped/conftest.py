"""The environment that all tests of this folder use."""

import pytest

from tests.shipped.environment import Environment, make_environment


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment(tmp_path_factory.mktemp("shipped"))
