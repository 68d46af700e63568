"""The text around a caption: --prefix, --suffix and --template."""

from __future__ import annotations

import os
import string
from dataclasses import dataclass

from ...errors import OptionError

FIELDS = ("caption", "stem", "name", "folder")


@dataclass(frozen=True)
class CaptionTemplate:
    """prefix + caption + suffix, inserted into a template of {caption}, {stem}, {name} and {folder}."""

    prefix: str = ""
    suffix: str = ""
    template: str = "{caption}"

    def validate(self) -> None:
        """Raise OptionError for a template with unknown fields or without the caption."""
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None]
        except ValueError as error:
            raise OptionError(f"template is {self.template!r}: {error}; write {{{{ for a brace") from None
        unknown = [field for field in fields if field not in FIELDS]
        if unknown or "caption" not in fields:
            problem = f"{{{unknown[0]}}} is not a field" if unknown else "{caption} is missing"
            choices = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise OptionError(f"template is {self.template!r}: {problem}; choose from {choices}")

    def render(self, caption: str, name: str) -> str:
        """Return the text to write for a caption of the picture `name`, on one line."""
        folder, file = os.path.split(name)
        stem, caption = os.path.splitext(file)[0], f"{self.prefix}{caption}{self.suffix}"
        values = {"caption": caption, "stem": stem, "name": file, "folder": os.path.basename(folder)}
        parsed = string.Formatter().parse(self.template)
        parts = [text + ("" if field is None else values[field]) for text, field, _, _ in parsed]
        return " ".join("".join(parts).splitlines())
