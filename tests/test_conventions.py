"""Conventions of the tests: imports, and the source of random numbers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import changed, nightly

TESTS = Path(__file__).parent
MODULES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, at its top or in a function; `from a import b` is a.b."""
    package = ("tests", *path.relative_to(TESTS).parts[:-1])
    return changed.names(ast.walk(ast.parse(path.read_text())), package)


@pytest.mark.parametrize("module", MODULES)
def test_no_test_module_imports_another(module: str) -> None:
    found = [name for name in imported(TESTS / module) if re.match(r"tests\.(.*\.)?(test_|conftest\b)", name)]
    assert not found, f"{', '.join(found)}: move what is shared into tests/tiny, or a module beside it not named test_*"


def test_helpers_import_no_test_module() -> None:
    for path in set(TESTS.rglob("*.py")) - {TESTS / module for module in MODULES}:
        assert not [name for name in imported(path) if re.match(r"tests\.(.*\.)?test_", name)], path


def test_random_numbers_come_from_the_session_seed() -> None:
    fresh = re.compile(
        r"default_rng\(\)|random\.Random\(\)|SystemRandom|torch\.seed\(\)|^[A-Z]\w* = (?!.*seed_of).*random\.\w+\(",
        re.M,
    )
    for path in set(TESTS.rglob("*.py")) - {TESTS / "seeds.py", Path(__file__)}:
        assert not fresh.search(path.read_text()), f"{path}: tests.seeds has new_seed() and seed_of(__name__)"


def test_forbidden_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "TESTS", tmp_path)
    (tmp_path / "train").mkdir()
    module = tmp_path / "train" / "test_a.py"
    module.write_text(
        "def f():\n    from .test_b import c\n    from ..export import test_d\n    from tests.tiny import e\n"
    )
    assert list(imported(module)) == ["tests.train.test_b.c", "tests.export.test_d", "tests.tiny.e"]


def test_every_nightly_pattern_names_a_test() -> None:
    """By the source, since the run may have collected only a part."""
    for pattern in nightly.NIGHTLY:
        file, _, name = pattern.partition("::")
        source = (TESTS.parent / file).read_text()
        function = re.match(r"\w*", name)
        assert function is not None and f"def {function[0]}" in source, pattern
