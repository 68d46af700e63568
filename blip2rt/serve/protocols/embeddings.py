"""Embeddings of texts and pictures: OpenAI's route, and what Ollama's shares with it."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator

from ..endpoints import Endpoint
from ..errors import bad_request
from ..inference import CancelEvent, batches, count_text_tokens
from ..service import Call
from .openai import check_image_count


class ImageInput(BaseModel):
    """An image to embed."""

    image: str


class TextInput(BaseModel):
    """A text to embed."""

    text: str


def _mark_images(value: Any) -> Any:
    """Convert strings that are data URIs of images to image inputs."""
    if isinstance(value, list):
        return [_mark_images(each) for each in value]
    return {"image": value} if isinstance(value, str) and value[:11].lower() == "data:image/" else value


MarkImages = BeforeValidator(_mark_images)


class EmbeddingsRequest(BaseModel):
    """POST /v1/embeddings. Texts, as strings or {"text": ...}; data URIs, or {"image": ...}, are pictures."""

    model: str | None = None
    input: Annotated[str | ImageInput | TextInput | list[str | ImageInput | TextInput | int | list[int]], MarkImages]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


async def _embeddings(call: Call, body: EmbeddingsRequest) -> Any:
    vectors, tokens = await embed(call, body.input if isinstance(body.input, list) else [body.input])
    if body.dimensions is not None and vectors and body.dimensions != len(vectors[0]):
        raise bad_request(f"dimensions: this model's embeddings have {len(vectors[0])}", "dimensions")
    encoded = [_base64(vector) if body.encoding_format == "base64" else vector.tolist() for vector in vectors]
    data = [{"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(encoded)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": call.service.name, "usage": usage}


async def embed(call: Call, inputs: list[Any]) -> tuple[list[np.ndarray], int]:
    """Return the vectors of texts and images, and the number of text tokens. An image's is its queries' mean."""
    if not inputs or len(inputs) > call.limits.inputs:
        raise bad_request(f"input: give 1 to {call.limits.inputs} inputs", "input")
    if any(isinstance(each, int | list) for each in inputs):
        fix = "send texts (in LangChain, OpenAIEmbeddings(check_embedding_ctx_length=False))"
        raise bad_request(f"input: these are token ids of another tokenizer: {fix}", "input")
    inputs = [each.text if isinstance(each, TextInput) else each for each in inputs]
    check_image_count(call, sum(isinstance(each, ImageInput) for each in inputs), "input")
    images = {i: await call.image(each.image, "input") for i, each in enumerate(inputs) if isinstance(each, ImageInput)}
    texts = {i: each for i, each in enumerate(inputs) if i not in images}
    if any(not text.strip() for text in texts.values()):
        raise bad_request("input: a text is empty", "input")
    call.context.log_fields["images"] = len(images)

    def compute(cancelled: CancelEvent) -> dict[int, np.ndarray]:
        vectors: dict[int, np.ndarray] = {}
        for batch in batches(list(texts), cancelled):
            vectors |= zip(batch, call.model.embed_text([texts[i] for i in batch]), strict=True)
        for batch in batches(list(images), cancelled):
            means = call.model.embed_image([images[i] for i in batch]).mean(axis=1)  # (B, E)
            vectors |= zip(batch, means / np.linalg.norm(means, axis=1, keepdims=True), strict=True)
        return vectors

    vectors = await call.run(compute)
    tokens = count_text_tokens(call.model, list(texts.values()))
    call.service.metrics.tokens.labels("prompt").inc(tokens)
    return [vectors[i] for i in range(len(inputs))], tokens


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()


ENDPOINTS = [Endpoint("/v1/embeddings", _embeddings, EmbeddingsRequest, "Embed texts and pictures")]
