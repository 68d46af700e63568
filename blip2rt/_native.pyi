"""The native core (engines/), as Python sees it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Runtime:
    """ONNX Runtime, loaded once a process. Another library in the same process is refused."""

    def __init__(self, library_path: str) -> None: ...
    @property
    def version(self) -> str: ...

class Session:
    """A loaded graph. `run` may be called from any number of threads."""

    def __init__(self, runtime: Runtime, graph_path: str, intra_op_threads: int = 0) -> None: ...
    @property
    def inputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape), -1 for a free axis."""
    @property
    def outputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape), -1 for a free axis."""
    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]: ...

class Generator:
    """The generation loop over the graphs `embed` and `llm`. `generate` may be called from any number of threads."""

    def __init__(
        self, embed: Session, llm: Session, layers: int, kv_heads: int, head_dim: int, hidden_size: int, vocab_size: int
    ) -> None: ...
    def generate(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any] = ...,
    ) -> list[list[tuple[list[int], float]]]:
        """prefix_embeds (B, Q, D), B prompts -> for each image its best sequences: new token ids, score."""
