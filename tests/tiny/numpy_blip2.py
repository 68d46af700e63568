"""BLIP-2's losses in float64 NumPy, written from the paper: one sample at a time, without padding, caches or batches.

Weights come by name from our PyTorch model; nothing else is shared with it.
"""

import math
from typing import Any

import numpy as np
import torch

Array = Any
erf = np.vectorize(math.erf)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def attend(query: Array, key: Array, value: Array, heads: int, seen: Array) -> Array:
    """(S, W), (T, W), (T, W) -> (S, W); seen (S, T) bool."""
    query, key, value = (x.reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (query, key, value))
    weights = softmax(np.where(seen, query @ key.transpose(0, 2, 1) * key.shape[-1] ** -0.5, -np.inf))
    return (weights @ value).transpose(1, 0, 2).reshape(query.shape[1], -1)


class Weights:
    def __init__(self, module: torch.nn.Module) -> None:
        self.values = {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}

    def __getitem__(self, name: str) -> Array:
        return self.values[name]

    def linear(self, name: str, x: Array) -> Array:
        return x @ self[f"{name}.weight"].T + self.values.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Array, eps: float = 1e-5) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * self[f"{name}.weight"] + self[f"{name}.bias"]


class NumpyBlip2(Weights):
    """The Q-Former with its heads (paper section 3.1, figure 2)."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.config = model.config

    def qformer(self, features: Array | None, token_ids: Array | None, mask: str) -> tuple[Array, Array]:
        """States of the queries (Q, H) and of the text (T, H) under the mask both | causal; either may be absent."""
        c = self.config.qformer
        eps = c.layer_norm_eps
        queries = np.zeros((0, c.hidden_size))
        text = np.zeros((0, c.hidden_size))
        if features is not None:
            queries = self.norm("qformer.query_norm", self["qformer.query_tokens"][0], eps)
            features = self.norm("vision_norm", features, self.config.vision_norm_eps)
            if self.config.learned_positions:
                features = features + self["vision_positions"][0]
        if token_ids is not None:
            text = self["qformer.word_embeddings.weight"][token_ids]
            text = text + self["qformer.position_embeddings.weight"][: len(token_ids)]
            text = self.norm("qformer.query_norm" if c.query_gain is None else "qformer.text_norm", text, eps)
        q, size = len(queries), len(queries) + len(text)
        seen = np.ones((size, size), bool)
        if mask == "causal":  # queries see queries; text sees queries and the text before it
            seen = np.tril(seen)
            seen[:q, :q] = True
        x = np.concatenate((queries, text))
        for index in range(c.layers):
            at = f"qformer.layers.{index}"
            x = self.norm(f"{at}.attention.norm", x + self._attention(f"{at}.attention", x, x, seen), eps)
            queries, text = x[:q], x[q:]
            if index % c.cross_attention_frequency == 0 and features is not None:
                all_seen = np.ones((q, len(features)), bool)
                mixed = self._attention(f"{at}.cross_attention", queries, features, all_seen)
                queries = self.norm(f"{at}.cross_attention.norm", queries + mixed, eps)
            queries, text = (
                self._ffn(f"{at}.{part}", y, eps) for part, y in (("query_ffn", queries), ("text_ffn", text))
            )
            x = np.concatenate((queries, text))
        return x[:q], x[q:]

    def _attention(self, name: str, x: Array, source: Array, seen: Array) -> Array:
        parts = (self.linear(f"{name}.{part}", y) for part, y in (("query", x), ("key", source), ("value", source)))
        return self.linear(f"{name}.output", attend(*parts, self.config.qformer.heads, seen))

    def _ffn(self, name: str, x: Array, eps: float) -> Array:
        if not len(x):
            return x
        return self.norm(f"{name}.norm", x + self.linear(f"{name}.outer", gelu(self.linear(f"{name}.inner", x))), eps)

    # section 3.2

    def similarity(self, images: Array, texts: list[Array]) -> Array:
        """(B, T): the greatest cosine of any query with [CLS]."""
        seen = [self.linear("vision_proj", self.qformer(image, None, "both")[0]) for image in images]
        read = [self.linear("text_proj", self.qformer(None, text, "both")[1][0]) for text in texts]
        unit = [[x / np.linalg.norm(x, axis=-1, keepdims=True) for x in side] for side in (seen, read)]
        return np.array([[(image @ text).max() for text in unit[1]] for image in unit[0]])

    def itc(self, sim: Array, image_ids: Array) -> float:
        logits, count = sim / self["temperature"], len(sim)
        same = (image_ids[:, None] == image_ids[None]).astype(float)
        target = 0.9 * same / same.sum(1, keepdims=True) + 0.1 / count
        return float(-sum((log_softmax(x) * target).sum() for x in (logits, logits.T)) / count / 2)

    def negative_weights(self, sim: Array, image_ids: Array) -> tuple[Array, Array]:
        """Probabilities of each text's wrong images (T, B) and of each image's wrong texts (B, T)."""
        logits = np.where(image_ids[:, None] == image_ids[None], -np.inf, sim / self["temperature"])
        return softmax(logits.T), softmax(logits)

    def itm(self, images: Array, texts: list[Array], wrong_image: Array, wrong_text: Array) -> float:
        losses = []
        for i in range(len(images)):
            for image, text, label in ((i, i, 1), (wrong_image[i], i, 0), (i, wrong_text[i], 0)):
                queries = self.qformer(images[image], texts[text], "both")[0]
                losses.append(-log_softmax(self.linear("itm_head", queries).mean(0))[label])
        return float(np.mean(losses))

    def itg(self, images: Array, texts: list[Array], dec: int) -> float:
        losses = []
        for image, ids in zip(images, texts, strict=True):
            inputs = np.array([dec, *ids[1:]])
            hidden = self.qformer(image, inputs, "causal")[1][:-1]
            hidden = gelu(self.linear("lm_head.transform", hidden))
            hidden = self.norm("lm_head.norm", hidden, self.config.qformer.layer_norm_eps)
            logp = log_softmax(hidden @ self["qformer.word_embeddings.weight"].T + self["lm_head.bias"])
            losses += [-0.9 * p[token] - 0.1 * p.mean() for p, token in zip(logp, inputs[1:], strict=True)]
        return float(np.mean(losses))

    # section 3.3

    def prefix_embeds(self, image: Array) -> Array:
        queries = self.qformer(image, None, "both")[0]
        embeds = self.linear("projection", queries)
        return self.norm("prefix_norm", embeds) if self.config.normalize_prefix else embeds
