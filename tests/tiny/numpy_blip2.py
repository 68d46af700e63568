"""BLIP-2's losses in float64 NumPy, written from the paper: one sample at a time, without padding, caches or batches.

Weights come by name from our PyTorch model and from transformers' OPT and T5; nothing else is shared with them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

Array = Any
erf = np.vectorize(math.erf)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def attend(
    query: Array, key: Array, value: Array, heads: int, seen: Array, bias: Array = 0.0, scale: float = 0
) -> Array:
    """(S, W), (T, W), (T, W) -> (S, W); seen (S, T) bool."""
    query, key, value = (x.reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (query, key, value))
    scores = query @ key.transpose(0, 2, 1) * (scale or key.shape[-1] ** -0.5) + bias
    weights = softmax(np.where(seen, scores, -np.inf))
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
        if self.config.query_offsets:
            queries = queries + self["query_offsets"][0]
        embeds = self.linear("projection", queries)
        return self.norm("prefix_norm", embeds) if self.config.normalize_prefix else embeds


def opt_losses(llm: Any, prefix: Array, ids: list[int], given: int) -> list[float]:
    """Cross-entropy of each token after the first `given`, after a soft prompt (P,D)."""
    w, config = Weights(llm), llm.config
    body = "model.decoder"
    x = np.concatenate((prefix, w[f"{body}.embed_tokens.weight"][ids]))
    x = x + w[f"{body}.embed_positions.weight"][2 : 2 + len(x)]
    seen = np.tril(np.ones((len(x), len(x)), bool))
    for index in range(config.num_hidden_layers):
        at = f"{body}.layers.{index}"
        h = w.norm(f"{at}.self_attn_layer_norm", x)
        q, k, v = (w.linear(f"{at}.self_attn.{part}_proj", h) for part in "qkv")
        x = x + w.linear(f"{at}.self_attn.out_proj", attend(q, k, v, config.num_attention_heads, seen))
        h = w.norm(f"{at}.final_layer_norm", x)
        x = x + w.linear(f"{at}.fc2", np.maximum(0, w.linear(f"{at}.fc1", h)))
    logp = log_softmax(w.norm(f"{body}.final_layer_norm", x) @ w["lm_head.weight"].T)
    return [-logp[len(prefix) + i - 1][ids[i]] for i in range(given, len(ids))]


class NumpyT5(Weights):
    def __init__(self, llm: Any) -> None:
        super().__init__(llm)
        self.config = llm.config

    def rms(self, name: str, x: Array) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.layer_norm_epsilon) * self[f"{name}.weight"]

    def bias(self, stack: str, size: int) -> Array:
        """Of relative positions (key - query), in T5's buckets: (heads, size, size)."""
        both, count = stack == "encoder", self.config.relative_attention_num_buckets
        table = self[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        out = np.zeros((table.shape[1], size, size))
        for i in range(size):
            for j in range(size):
                half, start, distance = count, 0, i - j
                if both:
                    half, start, distance = count // 2, (count // 2 if j > i else 0), abs(i - j)
                distance = max(distance, 0)
                exact = half // 2
                if distance >= exact:
                    far = math.log(distance / exact) / math.log(self.config.relative_attention_max_distance / exact)
                    distance = min(half - 1, exact + int(far * (half - exact)))
                out[:, i, j] = table[start + distance]
        return out

    def attention(self, name: str, x: Array, source: Array, seen: Array, bias: Array = 0.0) -> Array:
        parts = (self.linear(f"{name}.{p}", y) for p, y in (("q", x), ("k", source), ("v", source)))
        return self.linear(f"{name}.o", attend(*parts, self.config.num_heads, seen, bias, 1.0))

    def stack(self, kind: str, x: Array, encoded: Array | None) -> Array:
        size = len(x)
        seen = np.ones((size, size), bool) if encoded is None else np.tril(np.ones((size, size), bool))
        bias = self.bias(kind, size)
        for index in range(self.config.num_layers):
            at = f"{kind}.block.{index}.layer"
            h = self.rms(f"{at}.0.layer_norm", x)
            x = x + self.attention(f"{at}.0.SelfAttention", h, h, seen, bias)
            if encoded is not None:
                h = self.rms(f"{at}.1.layer_norm", x)
                all_seen = np.ones((size, len(encoded)), bool)
                x = x + self.attention(f"{at}.1.EncDecAttention", h, encoded, all_seen)
            last = f"{at}.{1 if encoded is None else 2}"
            h = self.rms(f"{last}.layer_norm", x)
            gated = gelu_tanh(self.linear(f"{last}.DenseReluDense.wi_0", h)) * self.linear(
                f"{last}.DenseReluDense.wi_1", h
            )
            x = x + self.linear(f"{last}.DenseReluDense.wo", gated)
        return self.rms(f"{kind}.final_layer_norm", x)

    def losses(self, prefix: Array, given: list[int], learned: list[int]) -> list[float]:
        """Cross-entropy of each token of the decoder, the encoder reading the soft prompt and `given`."""
        table = self["shared.weight"]
        encoded = self.stack("encoder", np.concatenate((prefix, table[given])), None)
        inputs = [self.config.decoder_start_token_id, *learned[:-1]]
        logp = log_softmax(self.stack("decoder", table[inputs], encoded) @ self["lm_head.weight"].T)
        return [-logp[i][token] for i, token in enumerate(learned)]
