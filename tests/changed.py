"""Print the test files that a change may break: `python -m tests.changed [REVISION]`, the base of the change.

A test file is chosen if its imports reach a changed module, or if its folder has the name of a changed one. Imports
inside functions do not count, since the command line reaches everything by them. C++ has no imports: see ENGINES.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"blip2rt": "blip2rt", "blip2rt_train": "train", "blip2rt_export": "export", "tests": "tests"}
FOLDERS |= {"benchmarks": "benchmarks"}
ENGINES = ("engines", "runtime", "c", "structured")  # what tests C++, whichever folder of it
EVERYTHING = ("pyproject.toml", "CMakeLists.txt", "tests/conftest.py", "tests/seeds.py")


def module_file(name: str) -> Path | None:
    """The file of a dotted name, or of the module that defines it."""
    package, *rest = name.split(".")
    for depth in range(len(rest), -1, -1) if package in FOLDERS else ():
        path = ROOT.joinpath(FOLDERS[package], *rest[:depth])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def imported(file: Path) -> Iterator[str]:
    """Dotted names that a module imports when it is imported."""
    parts = file.relative_to(ROOT).parts[:-1]
    package = ({folder: name for name, folder in FOLDERS.items()}[parts[0]], *parts[1:])
    return names(ast.parse(file.read_text("utf-8")).body, package)


def names(nodes: Iterable[ast.AST], package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that the imports among `nodes` of a module of `package` mean; `from a import b` is a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{each.name}" for each in node.names)


@cache
def reached(file: Path) -> frozenset[Path]:
    """A module's file, and those of all modules that it imports, directly or not."""
    found, waiting = {file}, [file]
    while waiting:
        new = {path for name in imported(waiting.pop()) if (path := module_file(name))} - found
        found |= new
        waiting += new
    return frozenset(found)


def chosen(changed: list[str]) -> list[Path]:
    """The test files for changed paths, relative to the root."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    if any(path in EVERYTHING for path in changed):
        return tests
    folders = {part for path in changed for part in Path(path).parts[:-1][-2:]} - {"blip2rt", "tests"}
    folders |= {"runtime"} if any(Path(path).parent == Path("blip2rt") for path in changed) else set()
    folders |= {"docs"} if any(path.endswith(".md") for path in changed) else set()
    folders |= set(ENGINES) if any(path.startswith("engines/") for path in changed) else set()
    files = {ROOT / path for path in changed}
    return [test for test in tests if files & reached(test) or folders & {*test.relative_to(ROOT / "tests").parts[:-1]}]


if __name__ == "__main__":
    base = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    git = ["git", "-C", str(ROOT)]
    lines = [[*git, "diff", "--name-only", base], [*git, "ls-files", "--others", "--exclude-standard"]]
    changed = [line for command in lines for line in subprocess.check_output(command, text=True).splitlines()]
    print(*(path.relative_to(ROOT) for path in chosen(changed)))
