"""Fill JSON from a picture: `fill(model, image, schema)` gives a value that is valid under a JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .fill import fill_form
from .form import Form, answers_of
from .picture import Picture
from .schema import read

if TYPE_CHECKING:
    from ..image import ImageLike
    from ..model import Model


def fill(
    model: Model,
    image: ImageLike,
    schema: Any,
    question: str | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Any:
    """Image and JSON Schema -> a value that is valid under the schema.

    Each field asks its description or, without one, its name; docs/structured.md has the rules and limits.

    question: what a field such as "answer", or a schema without properties, asks; None: its caption
    cancelled: asked between the steps; once it says yes, the rest is left empty
    Raises OptionError, which names the field, for a schema that a picture cannot fill; ImageError, CapabilityError.
    """
    form = read(schema)
    return fill_form(Picture(model, image, cancelled), form, question)


__all__ = ["Form", "Picture", "answers_of", "fill", "fill_form", "read"]
