"""Where the results of `caption` and `tag` go, and the text around them."""

import os
import string
from dataclasses import dataclass

from ...errors import OptionError
from ...object_storage import Url, is_url
from ..flags import XMP_NAMES
from ..sources import Sources
from .tables import TABLES

FIELDS = ("caption", "stem", "name", "folder")  # of a template


@dataclass(frozen=True)
class OutputSettings:
    """Where captions go; standard output if nothing is set."""

    sidecar: str | None = None  # extension of a file next to each picture
    xmp: str | None = None  # name of the sidecar of photo.jpg
    out: str | None = None
    overwrite: bool = False
    json: bool = False  # print JSON objects
    errors: str | None = None  # file that lists failures
    strict: bool = False  # stop at the first failure

    @property
    def printed(self) -> bool:
        return self.sidecar is None and self.out is None and self.xmp is None


def check_outputs(outputs: OutputSettings, sources: Sources) -> None:
    """Raise OptionError for conflicting outputs."""
    files = [("--out", outputs.out), ("--errors", outputs.errors), *(("--from-file", name) for name in sources.lists)]
    known: dict[str, str] = {}
    for flag, name in files:
        if name is None or (os.path.exists(name) and not os.path.isfile(name)):
            continue
        first = known.setdefault(os.path.realpath(name), flag)
        if first != flag:
            raise OptionError(f"{first} and {flag} are the same file, {name!r}: give another one")
    if (outputs.sidecar or outputs.xmp) and (url := next(filter(is_url, sources.paths), None)):
        raise OptionError(f"{url!r} cannot have sidecar files: give --out FILE.jsonl")
    if outputs.overwrite and outputs.printed:
        raise OptionError("overwrite is given, but nothing is written: give --write, --xmp or --out")
    if outputs.json and not outputs.printed:
        raise OptionError("--json prints captions, but they go to files: give --out FILE.jsonl")
    file = str(Url.parse(outputs.out)) if outputs.out and is_url(outputs.out) else outputs.out
    if file is not None and os.path.splitext(file)[1].lower() not in TABLES:
        raise OptionError(f"out is {outputs.out!r}: give a file that ends with {', '.join(TABLES)}")
    if outputs.xmp == XMP_NAMES[0] and (outputs.sidecar or "").lower().lstrip(".") == "xmp":
        raise OptionError("--xmp and --write xmp would write the same file: leave out one of them")


def check_template(template: str) -> None:
    """Raise OptionError for a template with unknown fields or without the caption."""
    try:
        parsed = [each for each in string.Formatter().parse(template) if each[1] is not None]
    except ValueError as error:
        raise OptionError(f"template is {template!r}: {error}; write {{{{ for a brace") from None
    unknown = [
        f"{field}:{spec}" if spec else field for _, field, spec, kind in parsed if field not in FIELDS or spec or kind
    ]
    if unknown or "caption" not in [field for _, field, _, _ in parsed]:
        problem = f"{{{unknown[0]}}} is not a field" if unknown else "{caption} is missing"
        choices = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise OptionError(f"template is {template!r}: {problem}; choose from {choices}")


def rendered(template: str, caption: str, name: str) -> str:
    """Return the text to write for a caption of the picture `name`, on one line."""
    folder, file = os.path.split(name)
    stem, folder = os.path.splitext(file)[0], os.path.basename(folder)
    return " ".join(template.format(caption=caption, stem=stem, name=file, folder=folder).splitlines())
