"""C++ files include each other in one direction: folders by the layers of the design, files without cycles."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

ENGINES = Path(__file__).parents[2] / "engines"

# A folder may include itself, its parent, and folders of the layers below.
LAYERS = (
    ("python", "c"),
    ("runtime",),
    ("loop", "media", "language"),
    ("text", "bundle", "english", "executor"),
    ("graphs",),
    ("ops",),
    ("kernels", "search", "ort"),
    ("base",),
)

Files = dict[str, str]  # path under engines/ -> text


def read_engines() -> Files:
    return {
        path.relative_to(ENGINES).as_posix(): path.read_text()
        for path in sorted(ENGINES.rglob("*"))
        if path.suffix in (".h", ".cpp")
    }


def includes(text: str) -> list[tuple[str, str]]:
    """Return (opening sign, name) of every `#include`."""
    return re.findall(r'^\s*#\s*include\s*(["<])([^">]+)[">]', text, re.MULTILINE)


def layer_of(folder: PurePosixPath) -> int | None:
    top = folder.parts[0] if folder.parts else ""
    return next((layer for layer, folders in enumerate(LAYERS) if top in folders), None)


def may_include(folder: PurePosixPath, other: PurePosixPath) -> bool:
    layer, layer_below = layer_of(folder), layer_of(other)
    assert layer is not None and layer_below is not None
    return other == folder or other in folder.parents or layer < layer_below


def faults(files: Files) -> list[str]:
    """Return all violations. A header and the source of the same name are one unit: they may include each other."""
    found, graph = [], {str(PurePosixPath(name).with_suffix("")): set[str]() for name in files}
    for name, text in files.items():
        folder = PurePosixPath(name).parent
        if layer_of(folder) is None:
            found.append(f"{name}: the folder {folder} has no layer: add it to LAYERS")
            continue
        for sign, other in includes(text):
            if sign == "<":
                if other in files:
                    found.append(f'{name} includes <{other}>: write "{other}"')
            elif other not in files:
                found.append(f"{name} includes {other}, which is not a path under engines/")
            else:
                below = PurePosixPath(other).parent
                if layer_of(below) is not None and not may_include(folder, below):
                    found.append(f"{name} includes {other}: {folder} may not include {below}")
                units = [str(PurePosixPath(each).with_suffix("")) for each in (name, other)]
                if units[0] != units[1]:
                    graph[units[0]].add(units[1])
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a cycle: {' > '.join(error.args[1])}")
    return found


def test_includes_follow_the_layers() -> None:
    files = read_engines()
    assert sum(len(includes(text)) for text in files.values()) > 100, "the engines are not where this test looks"
    assert faults(files) == []


def test_every_layer_exists() -> None:
    assert {name for layer in LAYERS for name in layer} == {path.name for path in ENGINES.iterdir() if path.is_dir()}


VIOLATIONS: dict[str, Files] = {
    "graphs/session.h: ort may not include graphs": {"ort/a.cpp": '#include "graphs/session.h"'},
    "kernels may not include search": {"kernels/a.h": '#include "search/sampler.h"'},
    "a cycle: loop/": {"loop/a.h": '#include "loop/b.h"', "loop/b.cpp": '#include "loop/a.h"', "loop/b.h": ""},
    "batch.h, which is not a path under engines/": {"loop/a.h": '#include "batch.h"'},
    "the folder audio has no layer": {"audio/a.h": ""},
}


@pytest.mark.parametrize("fault", list(VIOLATIONS))
def test_violations_are_found(fault: str) -> None:
    found = faults({**read_engines(), **VIOLATIONS[fault]})
    assert len(found) == 1 and fault in found[0]
