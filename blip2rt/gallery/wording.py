"""The words around a caption: --prefix, --suffix, --template. Knows strings."""

from __future__ import annotations

import os
import string
from dataclasses import dataclass

from ..errors import OptionError

FIELDS = ("caption", "stem", "name", "folder")


@dataclass(frozen=True)
class Wording:
    """prefix + caption + suffix, put into a template of {caption}, {stem}, {name} and {folder} of the picture."""

    prefix: str = ""
    suffix: str = ""
    template: str = "{caption}"

    def check(self) -> None:
        """Raise OptionError for a template with other fields, or without the caption."""
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None]
        except ValueError as error:
            raise OptionError(f"template is {self.template!r}: {error}; write {{{{ for a brace") from None
        unknown = [field for field in fields if field not in FIELDS]
        if unknown or "caption" not in fields:
            what = f"{{{unknown[0]}}} is no field" if unknown else "{caption} is missing"
            choices = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise OptionError(f"template is {self.template!r}: {what}; choose from {choices}")

    def around(self, caption: str, name: str) -> str:
        """A caption of the picture `name` -> the text that is written, on one line."""
        folder, file = os.path.split(name)
        values = {
            "caption": f"{self.prefix}{caption}{self.suffix}",
            "stem": os.path.splitext(file)[0],
            "name": file,
            "folder": os.path.basename(folder),
        }
        parts = [
            text + (values[field] if field is not None else "")
            for text, field, _, _ in string.Formatter().parse(self.template)
        ]
        return " ".join("".join(parts).splitlines())
