"""The native core (engines/), as Python sees it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Runtime:
    """ONNX Runtime, loaded once a process. Another library in the same process is refused."""

    def __init__(self, library_path: str) -> None: ...
    @property
    def version(self) -> str: ...
    @property
    def providers(self) -> list[str]:
        """What the library can run graphs on, e.g. CUDAExecutionProvider."""

class Session:
    """A loaded graph. `run` may be called from any number of threads."""

    def __init__(
        self,
        runtime: Runtime,
        graph_path: str,
        intra_op_threads: int = 0,
        custom_int4: bool = True,
        custom_int8: bool = False,
        cuda: bool = False,
    ) -> None:
        """custom_int4, custom_int8: such products by our operators where they can; int8 pays with hundreds of rows, and has
        an encoder's attention in bfloat16."""

    @property
    def custom_kernels(self) -> list[str]:
        """What runs in place of ONNX Runtime's, and how, such as "int4 avx512"."""
    @property
    def inputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape), -1 for a free axis."""
    @property
    def outputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape), -1 for a free axis."""
    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]: ...

class Vocabulary:
    """The text of every token as bytes, by which stop strings are found."""

    def __init__(self, tokens: list[bytes]) -> None: ...
    def __len__(self) -> int: ...
    @property
    def ends(self) -> NDArray[np.uint8]:
        """Bytes of uint64: token i is bytes [ends[i], ends[i + 1])."""
    @property
    def bytes(self) -> NDArray[np.uint8]:
        """Of all tokens, one after the other."""

def kernels() -> tuple[str, dict[str, str]]:
    """The source of the GPU's kernels, and the headers that it includes, by name."""

def processor_kernels() -> list[str]:
    """Those of the core that this processor runs, such as "int4 avx512"; ONNX Runtime does what is not among them."""

class SearchBatch:
    """The searches of a batch of images, in one piece of memory that a GPU can go on with."""

    def __init__(self, images: int, given: Sequence[int], vocab_size: int, options: Mapping[str, Any]) -> None: ...
    @property
    def memory(self) -> NDArray[np.uint8]:
        """The answers' blocks, to be taken to the device and overwritten with what comes back."""
    @property
    def plan(self) -> dict[str, Any]:
        """What the device has to know: images (of each answer), beams, stride, ..."""
    def advance(self, scores: NDArray[np.float32], last: bool = False) -> None:
        """A step of every answer on the CPU; scores (rows, V) are overwritten.

        An answer has 1 row in the first step, then one a beam.
        """
    def check(self) -> None:
        """Raises RuntimeError: what an answer has run into."""
    @property
    def done(self) -> bool: ...
    def added(self) -> list[tuple[int, int, int]]:
        """(image, draw, token id) of what came since the last call; empty with beams."""
    def results(self) -> Sequences:
        """Before it is done, what there is."""

Sequences = list[list[tuple[list[int], float]]]
"""For each image its best sequences: new token ids without the stop token, and their score."""

class Generation:
    """A generation under way; one thread steps it at a time."""

    def step(self) -> list[tuple[int, int, int]]:
        """One token more for every running answer. (image, draw, token id) of each; empty with beams."""
    def close(self) -> None:
        """Ends it where it is."""
    @property
    def done(self) -> bool: ...
    @property
    def seconds(self) -> tuple[float, float]:
        """Of all steps after the first, and of these within the graphs; the rest is the loop's own."""
    def results(self) -> Sequences:
        """Before it is done, what there is."""

class Generator:
    """The generation loop over `embed` and `llm`, and `encoder` where the language model has one.

    Any number of threads may call it. Options: docs/design.md.
    """

    def __init__(
        self,
        embed: Session,
        llm: Session,
        layers: int,
        kv_heads: int,
        head_dim: int,
        hidden_size: int,
        vocab_size: int,
        encoder: Session | None = None,
        decoder_start_token_id: int = 0,
    ) -> None: ...
    def generate(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any] = ...,
        on_token: Callable[[int, int, int], object] | None = None,
    ) -> Sequences:
        """prefix_embeds (B, Q, D), B prompts -> Sequences.

        on_token(image, draw, token id) is called for every token of greedy search and sampling; False ends the call.
        """
    def begin(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any] = ...,
    ) -> Generation:
        """As generate, step by step."""

class Chat:
    """A conversation about one image, whose cache stays; one thread uses it at a time."""

    def __init__(
        self, generator: Generator, prefix_embeds: NDArray[np.float32], max_rows: int, capacity: int
    ) -> None: ...
    def ask(self, prompt: Sequence[int], options: Mapping[str, Any] = ...) -> Generation:
        """The answer after [image][all that was said][prompt]; ends the one before where that is."""
    @property
    def positions(self) -> int:
        """Positions of the cache in use when the last question was asked."""
