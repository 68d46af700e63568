"""Search in an index of the gallery: a text or a picture -> the pictures that fit, with small copies of them."""

from __future__ import annotations

import base64
import io
import os
from itertools import takewhile
from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import ImageError
from ..image import load_rgb
from .faults import Fault, bad
from .service import Service
from .work import Stop

THUMBNAIL = 256  # pixels of the longer side


class SearchRequest(BaseModel):
    """POST /v1/search. Either a text or an image. rerank: so many of the best are judged by the matching head."""

    text: str | None = None
    image: str | bytes | None = None
    n: int = Field(10, ge=1, le=100)
    rerank: int = Field(0, ge=0, le=100)
    thumbnails: bool = True


def routes(service: Service) -> list[Route]:
    """The route, for a service."""

    async def search(request: Request) -> Response:
        folder = service.settings.index
        if folder is None:
            raise Fault(501, "this server searches in no index: start it with --index", "no_index")
        asked = await service.read(SearchRequest, request)
        if (asked.text is None) == (asked.image is None):
            raise bad("text, image: give one of them", "text")
        query: Any = asked.text
        if asked.image is not None:
            query = await service.image(request, asked.image)

        def compute(stop: Stop) -> list[dict[str, Any]]:
            from ..gallery import Index

            with Index.open(folder, service.model) as index:  # its table is one thread's; news of it are seen
                shown, rerank = asked.image is not None, asked.rerank
                hits = index.search(query, asked.n, image=shown, rerank=rerank, cancelled=stop.is_set)
            found = []
            for hit in takewhile(lambda _: not stop.is_set(), hits):  # as long as somebody waits for them
                name = os.fsencode(hit.name).decode("utf-8", "backslashreplace")  # JSON holds UTF-8 alone
                row: dict[str, Any] = {"name": name, "score": hit.score}
                if hit.probability is not None:
                    row["probability"] = hit.probability
                if asked.thumbnails:
                    row["thumbnail"] = _thumbnail(hit.path, service.settings.limits.pixels)
                found.append(row)
            return found

        return JSONResponse({"hits": await service.run(request, compute)})

    return [Route("/v1/search", search, methods=["POST"])]


def _thumbnail(path: Any, pixels: int) -> str | None:
    """A small JPEG's data URI; none of a picture that cannot be read any more."""
    try:
        image = load_rgb(path, THUMBNAIL, pixels)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
