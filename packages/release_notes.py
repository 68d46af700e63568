"""Print a version's section of CHANGELOG.md, or check that a tag fits the versions in the tree.

python packages/release_notes.py 0.2.0            # `Unreleased` for a development version
python packages/release_notes.py --check-tag v0.2.0
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Release notes from the changelog.")
    parser.add_argument("version", nargs="?", help="default: that of the tree")
    parser.add_argument("--check-tag", metavar="TAG", help="v1.2.3 for blip2rt, nano-v1.2.3 for blip2rt-nano")
    args = parser.parse_args()
    if args.check_tag is not None:
        if fault := tag_fault(args.check_tag):
            sys.exit(f"{args.check_tag}: {fault}")
        return
    print(notes((ROOT / "CHANGELOG.md").read_text(), args.version or version_of("blip2rt/version.py")))


def notes(changelog: str, version: str) -> str:
    """The text under a version's heading. Exits if there is none."""
    heading = "Unreleased" if ".dev" in version else version
    found = re.search(rf"^## \[{re.escape(heading)}\].*?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        sys.exit(f"CHANGELOG.md has nothing under [{heading}]: add it before the release")
    return found[1].strip()


def version_of(file: str) -> str:
    found = re.search(r'^(?:__)?version(?:__)? = "([^"]+)"', (ROOT / file).read_text(), re.MULTILINE)
    assert found is not None, file
    return found[1]


def tag_fault(tag: str) -> str:
    """What keeps a tag from being published; "" if nothing does."""
    nano = tag.startswith("nano-v")
    version = version_of("packages/nano/pyproject.toml" if nano else "blip2rt/version.py")
    if ".dev" in version:
        return f"the tree has the development version {version}: set the version first"
    if tag != f"{'nano-' if nano else ''}v{version}":
        return f"the tree has version {version}: tag that commit, or set the version first"
    if not nano:
        notes((ROOT / "CHANGELOG.md").read_text(), version)
    return ""


if __name__ == "__main__":
    main()
