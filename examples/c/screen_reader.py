"""An NVDA add-on that says what a picture on the screen shows. It needs libblip2rt and the standard library only.

As an add-on, this file is globalPlugins/pictures.py, with blip2rt.dll and the folder nano beside it; read
docs/screen-readers.md. `Captioner` runs wherever the library does: `python screen_reader.py LIBRARY PHOTO [MODEL]`.
"""

import ctypes
import sys
import threading
from pathlib import Path
from typing import Any

BGRA = 3  # of blip2rt_format: as a screen's pixels are
SURE = 0.7  # of confidence: below, a caption is a guess
BLANK = 16  # difference of the lightest and the darkest value of each colour


class Captioner:
    """A model that captions pictures of the screen. Any thread may use it."""

    def __init__(self, library: str, model: str | None = None) -> None:
        self._library = ctypes.CDLL(library)
        for name in ("texts_get", "error_message"):
            getattr(self._library, f"blip2rt_{name}").restype = ctypes.c_char_p
        self._model = self._make("load", model.encode() if model else None, None)

    def caption(self, pixels: Any, width: int, height: int) -> str:
        """Rows of blue, green, red and a fourth byte, from the top -> a sentence. Raises RuntimeError."""
        opaque = bytearray(bytes(pixels))
        if all(max(colour) - min(colour) < BLANK for colour in (opaque[0::4], opaque[1::4], opaque[2::4])):
            return "a blank picture"
        opaque[3::4] = b"\xff" * (width * height)  # the fourth byte of the screen means nothing
        data = (ctypes.c_char * len(opaque)).from_buffer(opaque)
        sizes = (ctypes.c_size_t(width), ctypes.c_size_t(height), ctypes.c_ssize_t(0))
        return self._caption(self._make("image_pixels", self._model, data, *sizes, BGRA))

    def caption_file(self, path: str) -> str:
        """A picture file -> a sentence. Raises RuntimeError."""
        return self._caption(self._make("image_file", self._model, path.encode()))

    def _caption(self, image: ctypes.c_void_p) -> str:
        try:
            features = self._make("encode", self._model, image)
        finally:
            self._library.blip2rt_image_free(image)
        texts, right, first = ctypes.c_void_p(), ctypes.c_double(), ctypes.c_size_t(0)
        try:
            texts = self._make("caption", self._model, features, None, None, None, None)
            self._library.blip2rt_confidence(self._model, features, texts, first, ctypes.byref(right), None)
            text: bytes = self._library.blip2rt_texts_get(texts, first)
        finally:
            self._library.blip2rt_texts_free(texts)
            self._library.blip2rt_features_free(features)
        return text.decode() if right.value >= SURE else f"perhaps {text.decode()}"

    def _make(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function whose last outputs are a handle and an error."""
        made, error = ctypes.c_void_p(), ctypes.c_void_p()
        if getattr(self._library, f"blip2rt_{name}")(*arguments, ctypes.byref(made), ctypes.byref(error)):
            message: bytes | None = self._library.blip2rt_error_message(error)
            self._library.blip2rt_error_free(error)
            raise RuntimeError((message or b"out of memory").decode())
        return made


try:
    import api
    import globalPluginHandler
    import screenBitmap
    import ui
    from scriptHandler import script
except ImportError:  # not in NVDA
    pass
else:

    class GlobalPlugin(globalPluginHandler.GlobalPlugin):  # type: ignore[misc]
        """NVDA+Shift+P says what the object under the navigator shows."""

        captioner: Captioner | None = None

        @script(description="Says what a picture shows", gesture="kb:NVDA+shift+p")  # type: ignore[misc]
        def script_describe(self, gesture: object) -> None:
            left, top, width, height = api.getNavigatorObject().location
            pixels = screenBitmap.ScreenBitmap(width, height).captureImage(left, top, width, height)
            threading.Thread(target=self._say, args=(pixels, width, height)).start()  # NVDA stays responsive

        def _say(self, pixels: Any, width: int, height: int) -> None:
            try:
                if self.captioner is None:
                    folder = Path(__file__).parent
                    self.captioner = Captioner(str(folder / "blip2rt.dll"), str(folder / "nano"))
                ui.message(self.captioner.caption(pixels, width, height))
            except (OSError, RuntimeError) as error:
                ui.message(str(error))


if __name__ == "__main__":
    print(Captioner(sys.argv[1], *sys.argv[3:]).caption_file(sys.argv[2]))
