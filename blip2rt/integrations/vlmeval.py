"""blip2rt as a model of VLMEvalKit: an object with `generate(msgs)`.

    from vlmeval.config import supported_VLM
    from blip2rt.integrations.vlmeval import Blip2rt

    supported_VLM["blip2rt"] = Blip2rt  # or partial(Blip2rt, "my-bundle", num_beams=5)

VLMEvalKit runs models by duck typing, so this file does not import it. Verified with ms-vlmeval 0.0.20.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from .harness import HarnessModel


class Blip2rt:
    """VLMEvalKit's interface."""

    is_api = False

    def __init__(self, bundle: str | None = None, **given: Any) -> None:
        """given: keywords of blip2rt.load (backend, device, threads), and fields of blip2rt.Options."""
        self.harness = HarnessModel(bundle, given)

    def set_dump_image(self, dump_image: Callable[[Any], Any]) -> None:
        """Images come as paths: nothing has to be dumped."""

    def use_custom_prompt(self, dataset: str) -> bool:
        """The data set's own prompts are used."""
        return False

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Parts of type image (a path) and text -> a caption or an answer about the first image."""
        images = [part["value"] for part in message if part["type"] == "image"]
        if not images:
            raise OptionError("the message has no image: choose a data set of images")
        prompt = "\n".join(part["value"] for part in message if part["type"] == "text")
        return self.harness.texts([(images[0], prompt)])[0]
