"""The recipes that ship with blip2rt: `blip2rt-train recipes` lists them, `blip2rt-train recipes NAME` copies one."""

import difflib
import re
from pathlib import Path

from blip2rt.command_line import Parser, path
from blip2rt.errors import OptionError

_INSTALLED = Path(__file__).parent / "recipes"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "recipes"  # of a checkout


def find(name: str) -> Path:
    """The recipe's file: a path, or the name of one that ships, such as finetune/nano. Raises OptionError."""
    for file in (Path(name), FOLDER / name, FOLDER / f"{name}.yaml"):
        if file.is_file():
            return file
    near = difflib.get_close_matches(name, _names(), 1)
    fix = f"did you mean {near[0]}?" if near else "give a YAML file, or a name that `blip2rt-train recipes` lists"
    raise OptionError(f"recipe {name!r} does not exist: {fix}")


def _names() -> dict[str, Path]:
    """The files by name, which is without .yaml."""
    files = [*FOLDER.rglob("*.yaml"), *FOLDER.rglob("clip.py")]
    return {file.relative_to(FOLDER).as_posix().removesuffix(".yaml"): file for file in sorted(files)}


def _about(file: Path) -> str:
    """The first sentence of a recipe's comment, or of a script's docstring."""
    text = " ".join(line.strip('#" ') for line in file.read_text(encoding="utf-8").splitlines()[:4])
    return re.split(r"(?<! al)[.:] ", text, maxsplit=1)[0].rstrip(".")


def main(argv: list[str] | None = None) -> int:
    """List the recipes, or copy one."""
    parser = Parser(description="List the recipes that ship with blip2rt, or copy one to edit it.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to copy")
    parser.add_argument("--out", type=path, metavar="FILE", help="where to (default: this folder, under its own name)")
    args = parser.parse_args(argv)
    if args.name is None:
        width = max(map(len, _names()))
        print("\n".join(f"{name:{width}}  {_about(file)}" for name, file in _names().items()))
        return 0
    file = find(args.name)
    out = args.out or Path(file.name)
    if out.exists():
        raise OptionError(f"{out} already exists: give another --out")
    base = file.relative_to(FOLDER).parent if file.is_relative_to(FOLDER) else file.parent
    text = file.read_text(encoding="utf-8")
    out.write_text(re.sub(r"^base: (?=\w)", f"base: {base.as_posix()}/", text, flags=re.MULTILINE), encoding="utf-8")
    print(out)
    return 0
