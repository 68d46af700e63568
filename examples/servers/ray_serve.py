"""Captions and answers by replicas on Ray Serve: MODEL=my-bundle serve run ray_serve:app (in this folder)

curl --data-binary @photo.jpg "localhost:8000/?question=what+colour+is+it"
"""

import asyncio
import os
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import blip2rt

THREADS = 4  # of a replica


@serve.deployment(
    ray_actor_options={"num_cpus": THREADS},
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 8},
)
class Captioner:
    def __init__(self) -> None:  # requests that run at the same time share decoding steps
        self.model = blip2rt.load(os.environ.get("MODEL"), threads=THREADS, batching=True, special_tokens=False)

    async def __call__(self, request: Request) -> Any:
        image, question = await request.body(), request.query_params.get("question")
        try:
            work = (self.model.ask, image, question) if question else (self.model.caption, image)
            text = await asyncio.to_thread(*work)
        except blip2rt.Blip2rtError as error:
            return JSONResponse({"error": str(error)}, 400)
        return {"text": str(text), "score": text.score}


app = Captioner.bind()
