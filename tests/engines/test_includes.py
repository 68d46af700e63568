"""The C++ files include each other in one direction: folders by the arrows of the design, files without a circle."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

ENGINES = Path(__file__).parents[2] / "engines"

# A folder may include itself, the folder around it, and the folders of the layers below.
LAYERS = (("python",), ("loop",), ("graphs",), ("ops",), ("kernels", "search", "ort"))

GENERATED = {"kernel_sources.h": "python"}  # name -> the folder that may include it; CMakeLists.txt writes the file

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


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the units of a circle, the first one again at its end; an empty list where there is none."""
    done: set[str] = set()

    def visit(unit: str, way: list[str]) -> list[str]:
        if unit in way:
            return [*way[way.index(unit) :], unit]
        if unit not in done:
            for other in sorted(graph[unit]):
                if found := visit(other, [*way, unit]):
                    return found
            done.add(unit)
        return []

    return next((found for unit in sorted(graph) if (found := visit(unit, []))), [])


def faults(files: Files) -> list[str]:
    """Return what is wrong. A header and the source of the same name are one unit: they may include each other."""
    found, graph = [], {str(PurePosixPath(name).with_suffix("")): set[str]() for name in files}
    for name, text in files.items():
        folder = PurePosixPath(name).parent
        if layer_of(folder) is None:
            found.append(f"{name}: no rule for the folder {folder}: add it to LAYERS")
            continue
        for sign, other in includes(text):
            if sign == "<":
                if other in files:
                    found.append(f'{name} includes <{other}>: write "{other}"')
            elif other in GENERATED:
                if GENERATED[other] != folder.parts[0]:
                    found.append(f"{name} includes {other}, which is {GENERATED[other]}'s alone")
            elif other not in files:
                found.append(f"{name} includes {other}, which is no path under engines/")
            else:
                below = PurePosixPath(other).parent
                if layer_of(below) is not None and not may_include(folder, below):
                    found.append(f"{name} includes {other}: {folder} may not include {below}")
                units = [str(PurePosixPath(each).with_suffix("")) for each in (name, other)]
                if units[0] != units[1]:
                    graph[units[0]].add(units[1])
    if circle := circle_in(graph):
        found.append(f"a circle: {' > '.join(circle)}")
    return found


def test_includes_follow_the_arrows_without_a_circle() -> None:
    files = read_engines()
    assert sum(len(includes(text)) for text in files.values()) > 100, "the engines are not where this test looks"
    assert faults(files) == []


def test_every_layer_exists() -> None:
    assert {folder for layer in LAYERS for folder in layer} == {
        path.name for path in ENGINES.iterdir() if path.is_dir()
    }


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"ort/a.cpp": '#include "graphs/session.h"'}, "graphs/session.h: ort may not include graphs"),
        ({"kernels/a.h": '#include "search/sampler.h"'}, "kernels may not include search"),
        ({"search/a.h": '  #  include "kernels/amx.h"'}, "search may not include kernels"),
        ({"kernels/int4/a.h": '#include "kernels/int8/tile.h"'}, "kernels/int4 may not include kernels/int8"),
        ({"kernels/a.h": '#include "kernels/int4/tile.h"'}, "kernels may not include kernels/int4"),
        ({"loop/a.h": '#include "loop/b.h"', "loop/b.cpp": '#include "loop/a.h"', "loop/b.h": ""},
         "a circle: loop/a > loop/b > loop/a"),
        ({"loop/a.h": '#include "decoder.h"'}, "decoder.h, which is no path under engines/"),
        ({"loop/a.h": '#include "../loop/decoder.h"'}, "../loop/decoder.h, which is no path under engines/"),
        ({"loop/a.h": "#include <ort/ort_api.h>"}, 'write "ort/ort_api.h"'),
        ({"loop/a.h": '#include "kernel_sources.h"'}, "kernel_sources.h, which is python's alone"),
        ({"media/a.h": ""}, "no rule for the folder media"),
        ({"a.h": ""}, "no rule for the folder ."),
    ],
)  # fmt: skip
def test_a_violation_is_found(more: Files, fault: str) -> None:
    found = faults({**read_engines(), **more})
    assert len(found) == 1 and fault in found[0]
