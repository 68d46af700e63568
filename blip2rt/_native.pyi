"""The types of the native core (engines/). tests/engines/test_native_stub.py compares them with the built module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Runtime:
    """ONNX Runtime, loaded once a process. Another library in the same process is refused."""

    def __init__(self, library_path: str) -> None: ...
    @property
    def version(self) -> str: ...

class GraphError(RuntimeError):
    """A graph's file that is damaged, or asks for what it may not. The message is one line and names the file."""

def check_graph(graph_path: str, files: Mapping[str, int] | None = None) -> None:
    """Raise GraphError where a graph's file is damaged, uses the core's own operators, or has data elsewhere.

    files: the files beside the graph that it may read, and their bytes; None allows every regular file beside it.
    """

class Session:
    """A loaded graph. `run` may be called from any number of threads."""

    def __init__(
        self,
        runtime: Runtime,
        graph_path: str,
        intra_op_threads: int = 0,
        custom_int4: bool = True,
        custom_int8: bool = False,
        custom_attention: bool = True,
        files: Mapping[str, int] | None = None,
    ) -> None:
        """Load a graph. Raises RuntimeError with ONNX Runtime's message, GraphError as check_graph does.

        intra_op_threads: 0 leaves the number to ONNX Runtime, which takes one a physical core.
        custom_int4, custom_int8, custom_attention: run such nodes by the core's operators where it has a kernel for
        them. int8 pays with hundreds of rows, and takes an encoder's attention along, in bfloat16.
        """

    @property
    def custom_kernels(self) -> list[str]:
        """The kernels that run in place of ONNX Runtime's, such as "int4 avx512"."""
    @property
    def inputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape), -1 for a free axis."""
    @property
    def outputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape), -1 for a free axis."""
    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph on arrays by name. Return the outputs by name; None asks for all of them."""

class Resize:
    """A picture that is resized as Pillow does it, to the last bit."""

    def __init__(self, from_size: tuple[int, int], to_size: tuple[int, int], filter: str) -> None:
        """Begin with no row. Raises ValueError.

        from_size, to_size: (width, height), at least 1.
        filter: "box", "bilinear", "hamming", "bicubic" or "lanczos", with Pillow's meaning.
        """

    def add(self, rows: bytes) -> None:
        """Add the next rows from the top, whole ones, four bytes a pixel (RGBX). Raises ValueError."""
    def add_lent(self, rows: object) -> None:
        """Add them from the capsule of an Arrow array (`__arrow_c_array__`), which is not copied. Raises ValueError."""
    def result(self) -> NDArray[np.uint8]:
        """Return (height, width, 3). Raises ValueError where rows are missing."""

class Vocabulary:
    """The text of every token, in bytes. Stop strings are searched for in it."""

    def __init__(self, tokens: Sequence[bytes]) -> None: ...
    def __len__(self) -> int: ...
    @property
    def ends(self) -> NDArray[np.uint8]:
        """The bytes of tokens + 1 numbers of uint64: token i is bytes [ends[i], ends[i + 1])."""
    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The bytes of all tokens, one token after the other."""

def kernels() -> tuple[str, dict[str, str]]:
    """Return the source of the GPU's kernels, and the headers that it includes, by name."""

def processor_kernels() -> list[str]:
    """Return the core's kernels that this processor runs, such as "int4 avx512". ONNX Runtime runs all else."""

class SearchBatch:
    """The searches of a batch of images, in one piece of memory that a GPU can go on with."""

    def __init__(
        self,
        images: int,
        given: Sequence[int],
        vocab_size: int,
        options: Mapping[str, Any],
        before: Sequence[Sequence[int]] = ...,
    ) -> None: ...
    @property
    def memory(self) -> NDArray[np.uint8]:
        """The answers' blocks. They are copied to the device, and overwritten with what comes back."""
    @property
    def plan(self) -> dict[str, Any]:
        """What the device has to know: images (of each answer), beams, stride (bytes of a block), ..."""
    def advance(self, scores: NDArray[np.float32], last: bool = False) -> None:
        """Take a step of every answer on the CPU. scores (rows, V) are overwritten.

        An answer has 1 row in the first step, then one row for each beam. last: no step follows.
        """
    def check(self) -> None:
        """Raise RuntimeError where an answer cannot go on, and say why."""
    @property
    def done(self) -> bool: ...
    def added(self) -> list[tuple[int, int, int]]:
        """Return (image, draw, token id) of every token that came since the last call; nothing with beams."""
    def results(self) -> Sequences:
        """Return each image's best sequences. Before the search is done, return what there is."""

Sequences = list[list[tuple[list[int], float]]]
"""Each image's best sequences: new token ids without the stop token, and their score."""

class Generation:
    """A generation under way; one thread steps it at a time."""

    def step(self) -> list[tuple[int, int, int]]:
        """Choose one token more for each running answer. Return (image, draw, token id) of each; nothing with beams."""
    def close(self) -> None:
        """End the generation where it is."""
    @property
    def done(self) -> bool: ...
    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of all steps after the first, and the part of them within the graphs. The rest is the loop's own."""
    def results(self) -> Sequences:
        """Return each image's best sequences. Before the generation is done, return what there is."""

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
        bidirectional_prompt: bool = False,
    ) -> None: ...
    def generate(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any] = ...,
        on_token: Callable[[int, int, int], object] | None = None,
    ) -> Sequences:
        """Answer B prompts behind prefix_embeds (B, Q, D).

        on_token(image, draw, token id) is called for every token of greedy search and sampling. False ends the call.
        """
    def begin(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any] = ...,
    ) -> Generation:
        """Begin what generate does, to be taken step by step."""
    def likelihoods(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        images: Sequence[int],
        texts: Sequence[Sequence[int]],
    ) -> list[float]:
        """Return the sum of each text's log-probabilities behind its image: prefix_embeds (B, Q, D), B prompts.

        images: the number of each text's image. An image whose texts follow each other is read once.
        """

class Submitted:
    """What one call has asked a Batcher for. Any thread may use it; when nobody holds it, it is cancelled."""

    def wait(self, seconds: float) -> bool:
        """Wait until all has ended, or a token has come where each one was asked for. Return whether it has."""
    def take(self) -> list[tuple[int, int, int]]:
        """Return (image, draw, token id) of every token that came since the last call; nothing with beams."""
    def cancel(self) -> None:
        """Ask for an end within a step. What there is then is the result."""
    def watch(self, number: int) -> None:
        """From now on, news of the batcher names this number when something has come."""
    @property
    def done(self) -> bool: ...
    def results(self) -> Sequences:
        """Return each image's best sequences, once done. Raises RuntimeError where a request has failed."""
    def lengths(self) -> list[tuple[int, int]]:
        """Return, for each image, the positions of image and prompt, and how many were read before. Once done."""
    def cut(self, image: int, tokens: int) -> bool:
        """Whether max_time ended a text of so many tokens about that image. Once done."""
    @property
    def timed_out(self) -> bool:
        """Whether max_time ended a text. Once done."""

class Batcher:
    """A thread that decodes the requests of all threads together. Any number of threads may call it.

    Requests wait until as many rows (answers, beams, draws) and positions as they need are free, in the order in which
    they came. The next step after that reads from their prompts, and decodes the answers of others beside it.
    """

    def __init__(self, generator: Generator, rows: int, positions: int, read: int = 128, kept_bytes: int = 0) -> None:
        """rows, positions: the pool of keys and values. read: positions of prompts that a step reads, at most.

        kept_bytes: of keys and values that are kept for later requests. Raises RuntimeError for a model that runs
        without the core's attention.
        """

    def submit(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any] = ...,
        images: Sequence[bytes] = ...,
        each_token: bool = False,
    ) -> Submitted:
        """Answer B prompts behind prefix_embeds (B, Q, D), as Generator.generate does. Return at once.

        images: a name of each prefix, under which what is read of it is kept; an empty one keeps nothing.
        Raises RuntimeError for options that make no sense, and for what never fits rows and positions.
        """
    def news(self, seconds: float) -> list[int]:
        """Wait for something new in what is watched. Return its numbers; none when so many seconds are over."""
    def close(self) -> None:
        """End the thread after its step. Fails what has not ended."""
    @property
    def counters(self) -> dict[str, int]:
        """steps, tokens, requests: done so far. waiting, running: requests. rows, positions: of the pool, in use.

        hits, misses: named images that were, and were not, read in part before; kept_positions: not read again;
        kept_bytes: of keys and values that are kept.
        """

class Chat:
    """A conversation about one image, whose cache stays; one thread uses it at a time."""

    def __init__(
        self, generator: Generator, prefix_embeds: NDArray[np.float32], max_rows: int, capacity: int
    ) -> None: ...
    def ask(self, prompt: Sequence[int], options: Mapping[str, Any] = ...) -> Generation:
        """Begin the answer to [image][all that was said][prompt]. Ends the answer before it where that is."""
    @property
    def positions(self) -> int:
        """Positions of the cache that were in use when the last question was asked."""
