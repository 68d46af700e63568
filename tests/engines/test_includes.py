"""C++ files include each other in one direction: folders by the layers of the design, files without cycles."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

ENGINES = Path(__file__).parents[2] / "engines"

# A folder may include itself, its parent, and folders of the layers below.
LAYERS = (
    ("python", "c"),
    ("runtime",),
    ("loop", "media", "language"),
    ("text", "bundle", "english"),
    ("graphs",),
    ("ops",),
    ("kernels", "search", "ort"),
    ("base",),
)

GENERATED = {"kernel_sources.h": "python"}  # written by CMakeLists.txt: name -> folder that may include it

Files = dict[str, str]  # path under engines/ -> text


def read_engines() -> Files:
    return {
        path.relative_to(ENGINES).as_posix(): path.read_text()
        for path in sorted(ENGINES.rglob("*"))
        if path.suffix in (".h", ".cpp", ".cu")
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


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the units of a cycle, with the first one repeated at the end, or an empty list."""
    done: set[str] = set()

    def visit(unit: str, path: list[str]) -> list[str]:
        if unit in path:
            return [*path[path.index(unit) :], unit]
        if unit not in done:
            for other in sorted(graph[unit]):
                if found := visit(other, [*path, unit]):
                    return found
            done.add(unit)
        return []

    return next((found for unit in sorted(graph) if (found := visit(unit, []))), [])


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
            elif other in GENERATED:
                if GENERATED[other] != folder.parts[0]:
                    found.append(f"{name} includes {other}, which only {GENERATED[other]} may include")
            elif other not in files:
                found.append(f"{name} includes {other}, which is not a path under engines/")
            else:
                below = PurePosixPath(other).parent
                if layer_of(below) is not None and not may_include(folder, below):
                    found.append(f"{name} includes {other}: {folder} may not include {below}")
                units = [str(PurePosixPath(each).with_suffix("")) for each in (name, other)]
                if units[0] != units[1]:
                    graph[units[0]].add(units[1])
    if cycle := find_cycle(graph):
        found.append(f"a cycle: {' > '.join(cycle)}")
    return found


def test_includes_follow_the_layers() -> None:
    files = read_engines()
    assert sum(len(includes(text)) for text in files.values()) > 100, "the engines are not where this test looks"
    assert faults(files) == []


def test_every_layer_exists() -> None:
    assert {folder for layer in LAYERS for folder in layer} == {
        path.name for path in ENGINES.iterdir() if path.is_dir()
    }


VIOLATIONS: dict[str, Files] = {
    "graphs/session.h: ort may not include graphs": {"ort/a.cpp": '#include "graphs/session.h"'},
    "kernels may not include search": {"kernels/a.h": '#include "search/sampler.h"'},
    "search may not include kernels": {"search/a.h": '  #  include "kernels/amx.h"'},
    "kernels/int4 may not include kernels/int8": {"kernels/int4/a.h": '#include "kernels/int8/tile.h"'},
    "kernels may not include kernels/int4": {"kernels/a.h": '#include "kernels/int4/tile.h"'},
    "a cycle: loop/a > loop/b > loop/a": {
        "loop/a.h": '#include "loop/b.h"',
        "loop/b.cpp": '#include "loop/a.h"',
        "loop/b.h": "",
    },
    "batch.h, which is not a path under engines/": {"loop/a.h": '#include "batch.h"'},
    "../loop/batch.h, which is not a path under engines/": {"loop/a.h": '#include "../loop/batch.h"'},
    'write "ort/ort_api.h"': {"loop/a.h": "#include <ort/ort_api.h>"},
    "kernel_sources.h, which only python may include": {"loop/a.h": '#include "kernel_sources.h"'},
    "the folder audio has no layer": {"audio/a.h": ""},
    "the folder . has no layer": {"a.h": ""},
}


@pytest.mark.parametrize("fault", list(VIOLATIONS))
def test_violations_are_found(fault: str) -> None:
    found = faults({**read_engines(), **VIOLATIONS[fault]})
    assert len(found) == 1 and fault in found[0]
