"""How likely texts are to a language model that ONNX Runtime runs by its own operators: the reference of the core's.

Every token is scored by a run that reads all before it, without a cache.
"""

from collections.abc import Sequence

import numpy as np

from tests.engines.native import Session

START = 3  # the token that the decoder of an encoder-decoder starts from


def scores(
    sessions: tuple[Session, Session, Session | None],
    prefix: np.ndarray,
    prompts: Sequence[list[int]],
    texts: Sequence[Sequence[list[int]]],
    forced: Sequence[int] = (),
) -> list[float]:
    """sessions: embed, llm without the core's attention, encoder; prefix (B, Q, D), B prompts, texts of each image ->
    the mean log-probability of each text's tokens after [prefix][prompt][forced]."""
    found = []
    for image, prompt in enumerate(prompts):
        for text in texts[image]:
            logs = [
                _log_probability(_logits(sessions, prefix[image : image + 1], prompt, [*forced, *text[:i]]), token)
                for i, token in enumerate(text)
            ]
            found.append(sum(logs) / len(logs))
    return found


def _log_probability(logits: np.ndarray, token: int) -> float:
    if token >= len(logits):  # an altered graph, which our loop rejects
        raise RuntimeError(f"token {token} is behind {len(logits)} logits")
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def _logits(
    sessions: tuple[Session, Session, Session | None], prefix: np.ndarray, prompt: list[int], more: list[int]
) -> np.ndarray:
    """The logits (V) of the token after [prefix][prompt][more]."""
    embed, llm, encoder = sessions

    def embeds(ids: list[int]) -> np.ndarray:
        return embed.run({"token_ids": np.array([ids], np.int64)})["token_embeds"]

    feeds = {}
    if encoder is None:
        inputs = np.concatenate([prefix, embeds(prompt + more)], axis=1) if prompt + more else prefix
    else:
        read = np.concatenate([prefix, embeds(prompt)], axis=1) if prompt else prefix
        mask = np.ones(read.shape[:2], np.int64)
        feeds = encoder.run({"inputs_embeds": read, "attention_mask": mask}) | {"encoder_mask": mask}
        inputs = embeds([START, *more])
    length = inputs.shape[1]
    feeds |= {
        "inputs_embeds": np.ascontiguousarray(inputs),
        "position_ids": np.arange(length)[None],
        "last_index": np.array([length - 1]),
        "seqlens_k": np.array([length - 1], np.int32),
        "total_sequence_length": np.array(length, np.int32),
    }
    for name, _dtype, shape in llm.inputs:
        if name.startswith("past_"):
            feeds[name] = np.zeros((1, shape[1], length, shape[3]), np.float32)
    logits = llm.run(feeds, ["logits"])["logits"]
    if logits.ndim != 2 or len(logits) != 1:  # an altered graph, which our loop rejects
        raise RuntimeError(f"logits have the shape {logits.shape}")
    return logits[0]
