"""Documentation: links, file names and options are valid, commands run, the site builds."""

import contextlib
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from blip2rt_train import recipe_files
from blip2rt_train.cli import COMMANDS as TRAINING

pytestmark = pytest.mark.long(20, "the pages' commands and code, run as readers run them")

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "benchmarks", "recipes")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
HISTORY = ("LOG.md", "CHANGELOG.md")  # may name removed files and options
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
CURRENT = [page for page in PAGES if page.name not in HISTORY]
EVERY_CURRENT_PAGE = pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without code blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs generate them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@EVERY_PAGE
def test_links_are_valid(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@EVERY_CURRENT_PAGE
def test_named_files_exist(page: Path) -> None:
    names = re.findall(
        r"`((?:blip2rt|engines|export|train|tests|recipes|docs|examples|docker)/[\w./*-]+)`", prose(page)
    )
    missing = [name for name in names if not list(ROOT.glob(name.rstrip("/")))]
    assert not missing


SCRIPTS = entry_points(group="console_scripts")
COMMANDS = {script.name: script.module for script in SCRIPTS if script.name.startswith("blip2rt")}


@cache
def help_text(module: str, subcommand: str) -> str:
    """The output of a command's --help."""
    out = io.StringIO()
    words = [*([subcommand] if subcommand else []), "--help"]
    with contextlib.redirect_stdout(out):
        try:
            code = importlib.import_module(module).main(words)
        except SystemExit as end:
            code = end.code
    assert not code, f"{module} {' '.join(words)} ends with {code}"
    return out.getvalue()


def console_commands(page: Path) -> list[str]:
    """The commands of a page's console blocks, each on one line."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"[\[\]]", "", line[2:].split("#")[0]) for line in lines if line.startswith("$ ")]


def unknown_options(command: str) -> list[str]:
    words = shlex.split(command)
    if "-m" in words and (name := words[words.index("-m") + 1]).startswith(("train.", "blip2rt_train.")):
        words = words[words.index("-m") + 1 :]
        module = f"blip2rt_{name.removeprefix('blip2rt_')}"  # as it is installed
    elif words[0] == "blip2rt-train":
        module, words = f"blip2rt_train.{TRAINING[words[1]][0]}", words[1:]
    elif words[0] in COMMANDS:
        module = COMMANDS[words[0]]
    else:
        return []
    takes_subcommands = module in ("blip2rt.cli", "blip2rt_train.prepare", "blip2rt_train.evaluate")
    known = help_text(module, words[1] if takes_subcommands and len(words) > 1 else "")
    options = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
    return [f"{module}: {option}" for option in options if not re.search(rf"{option}(?![\w-])", known)]


@EVERY_CURRENT_PAGE
def test_shown_options_and_recipes_exist(page: Path) -> None:
    assert not [fault for command in console_commands(page) for fault in unknown_options(command)]
    for name in re.findall(r"blip2rt.*(?:--recipe|recipes) ([\w./-]+)", "\n".join(console_commands(page))):
        assert recipe_files.find(name).is_relative_to(recipe_files.FOLDER)


NOT_RUN = re.compile(r" *<!-- not run: .+ -->")
PAGE_NOT_RUN = re.compile(r"^<!-- no command of this page is run: .+ -->$", re.MULTILINE)
INSTALLS = re.compile(r"(pip|git|make|sudo) ")
PAGES_WITH_COMMANDS = [
    page for page in [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"] if console_commands(page)
]


def commands_to_run(page: Path) -> list[str]:
    """The commands of a page's console blocks without a "not run" mark, except installations."""
    lines = [line for line in page.read_text().replace("\\\n", " ").splitlines() if line.strip()]
    found: list[str] = []
    marked = within = False
    for before, line in zip(["", *lines], lines, strict=False):
        if re.match(" *```", line):
            within = not within and line.strip() == "```console"
            marked = bool(NOT_RUN.fullmatch(before))
        elif within and not marked and line.strip().startswith("$ "):
            found.append(line.strip()[2:])
    return [] if PAGE_NOT_RUN.search(page.read_text()) else [each for each in found if not INSTALLS.match(each)]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_run_unless_marked(page: Path, tmp_path: Path) -> None:
    """One after the other, in a folder with a photograph and folders of photographs."""
    commands = commands_to_run(page)
    for folder in ("docs", "photos", "photos/sub", "my-photos"):
        (tmp_path / folder).mkdir()
        shutil.copy(ROOT / "docs" / "photo.jpg", tmp_path / folder)
    shutil.copy(ROOT / "docs" / "photo.jpg", tmp_path)
    (tmp_path / "yesterday").touch()
    os.utime(tmp_path / "yesterday", (0, 0))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command in commands:
        words, environment = ["bash", "-c", command], {**os.environ, "PATH": path}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert done.stdout or done.stderr or "--out" in command or "--write" in command, command


def test_pages_for_beginners_are_run() -> None:
    names = {page.name for page in PAGES_WITH_COMMANDS if commands_to_run(page)}
    assert names >= {"README.md", "gallery.md", "index.md", "jetson.md", "json.md"}


@pytest.mark.parametrize("name", ["robot.md", "json.md"])
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, on the photograph of the README."""
    pytest.importorskip("cv2")
    shutil.copy(ROOT / "docs" / "photo.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / name).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)


def test_menu_titles_and_links_are_first_headings() -> None:
    """A page has no other title in the menu, and index.md links every page of the menu by its heading."""
    text = (ROOT / "mkdocs.yml").read_text()
    nav = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    groups = [next(iter(entry.values())) if isinstance(entry, dict) else [entry] for entry in nav]
    pages = [page for group in groups for page in group]
    assert all(isinstance(page, str) for page in pages), pages
    assert {*pages} == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    where = (ROOT / "docs" / "index.md").read_text().partition("## Where to go")[2].partition("\n## ")[0]
    linked = dict(re.findall(r"\[([^]]+)\]\(([\w/-]+\.md)\)", where))
    titles = {page: re.search(r"^# (.+)$", (ROOT / "docs" / page).read_text(), re.M) for page in linked.values()}
    assert {title: page for title, page in linked.items() if titles[page]} == {
        title[1].replace("\\", ""): page for page, title in titles.items() if title
    }
    inside = {"inside/parity.md", "inside/releasing.md", "changelog.md"}
    assert {*pages} - {*linked.values()} - inside == {"index.md"}


def test_figures_of_the_choice_of_models_are_those_of_the_benchmarks() -> None:
    [table] = re.findall(r"^\| model \| bundle .*\n(?:\|.*\n)+", (ROOT / "docs" / "index.md").read_text(), re.M)
    measured = (ROOT / "docs" / "inside" / "benchmarks.md").read_text()
    assert (figures := re.findall(r"[\d.]+(?= (?:[MG]B|m?s) )", table)) and len(figures) == 11
    assert [figure for figure in figures if not re.search(rf"(?<![\d.]){figure}(?![\d.])", measured)] == []


def test_pages_are_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
    assert len((ROOT / "docs" / "inside" / "design.md").read_text().splitlines()) <= 200
    for page in (ROOT / "docs").rglob("*.md"):
        assert len(page.read_text().splitlines()) < 300, page


def test_changelog_has_one_line_per_entry() -> None:
    _, *releases = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    for release in releases:
        entries = [line for line in release.splitlines()[1:] if line and not line.startswith("### ")]
        assert entries and all(line.startswith("- ") and len(line) <= 100 for line in entries), release
    assert releases[-1].startswith("[0.1.0]") and releases[-1].count("\n- ") <= 40


def test_site_builds_with_the_reference(tmp_path: Path) -> None:
    """In strict mode, in which broken links are errors."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "api.html").read_text()
    for name in ("Model.caption", "Options", "Manifest", "OptionError"):
        assert f'{name}"' in reference
    assert "scaled_jpeg" in (tmp_path / "search" / "search_index.js").read_text(), "for the search without a server"
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    assert all('iframe-worker.js"' in page for page in pages if 'data-md-component="search-query"' in page)
    fetched = {
        url for page in pages for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)', page)
    }
    assert not fetched, "pages load nothing from other sites"
