"""The types of the native core (engines/). tests/engines/test_native_stub.py compares them with the built module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .language import Prompt

class Runtime:
    """ONNX Runtime, loaded once per process. A second library in the same process is rejected."""

    def __init__(self, library_path: str) -> None: ...
    @property
    def version(self) -> str: ...

class GraphError(BundleError):
    """A graph's file is damaged, or asks for something forbidden. The message is one line and names the file."""

def check_graph(graph_path: str, files: Mapping[str, int] | None = None, trusted: bool = False) -> None:
    """Raise GraphError if a graph's file is damaged, uses the core's own operators, or refers to other files.

    files: the files next to the graph that it may read, and their sizes; None allows every regular file there.
    trusted: allow operators that exports do not write, which can end the process.
    """

def read_bundle(folder: bytes, files: bool = True, tensors: bool = False) -> bytes:
    """Read and check a bundle. Return its manifest, JSON without faults. Raises BundleError with every fault.

    folder: a path as os.fsencode returns it. files: check the files' sizes. tensors: compare the inputs and outputs
    of every graph with the manifest.
    """

def verify_bundle(folder: bytes, progress: Callable[[int], object]) -> None:
    """Compare the sha256 of every file. Raises BundleError with every altered file.

    progress: called with the bytes of each piece of a file.
    """

def component_tensors(
    component: str, layers: int = 0, encoder_decoder: bool = False, target: str = "ort", in_place: bool = False
) -> tuple[list[str], list[str]]:
    """Return the names of a graph's inputs and outputs, each layer's key before its value.

    in_place: whether an llm graph of the target trt writes the cache itself.
    """

def readable_files(graph: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Files of a bundle -> those that a graph may read, by their names in its folder, with their sizes."""

def check_graphs(folder: bytes, trusted: bool) -> None:
    """Raise BundleError with every graph of a bundle that opening it would reject.

    trusted: allow operators that exports do not write.
    """

def manifest_faults(manifest: bytes) -> list[str]:
    """Return everything that is wrong with the bytes of a manifest."""

Tensors = list[tuple[str, str, list[int | str]]]
"""(name, dtype, shape): the size of each axis, or its name if it is free."""

def graph_tensors(model: bytes) -> tuple[Tensors, Tensors]:
    """Return the inputs and outputs of a model's bytes. Raises RuntimeError if they are no model."""

def with_axis_sizes(model: bytes, sizes: Mapping[str, int]) -> bytes:
    """Replace named axes of a model's inputs and outputs by sizes. Raises RuntimeError if the bytes are no model."""

class Session:
    """A loaded graph. Any number of threads may call `run`."""

    def __init__(
        self,
        runtime: Runtime,
        graph_path: str,
        intra_op_threads: int = 0,
        custom_int4: bool = True,
        custom_int8: bool = False,
        custom_attention: bool = True,
        files: Mapping[str, int] | None = None,
        trusted: bool = False,
    ) -> None:
        """Load a graph. Raises RuntimeError with ONNX Runtime's message, or GraphError like check_graph.

        intra_op_threads: 0 leaves the number to ONNX Runtime, which takes one per physical core.
        custom_int4, custom_int8, custom_attention: run such nodes with the core's operators if it has a kernel for
        them. int8 pays off with hundreds of rows; it includes an encoder's attention, in bfloat16.
        """

    @property
    def custom_kernels(self) -> list[str]:
        """The kernels that run in place of ONNX Runtime's, such as "int4 avx512"."""
    @property
    def inputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape); -1 for a dynamic axis."""
    @property
    def outputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape); -1 for a dynamic axis."""
    def release_weights(self) -> None:
        """Take the mapped weights out of the process's memory, until a run reads them from the system's cache."""
    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph on arrays by name. Return outputs by name; None returns all of them."""

class Guide:
    """What texts about similar pictures say, for the option guides of a search; engines/search/guide.h."""

    def __init__(self, texts: Sequence[Sequence[int]], rarity: Sequence[float], end: int) -> None:
        """texts: token ids, each followed by `end`; rarity (V): what tokens weigh when texts are compared"""
    def apply(self, tokens: Sequence[int], logits: Sequence[float]) -> list[float]:
        """Logits (V) of the token after others -> guided logits (V)"""
    def agreement(self, tokens: Sequence[int]) -> float:
        """How well a text agrees with the others"""

class RepeatedWords:
    """The rule that a text says no content word twice; engines/search/repeated_words.h."""

    def __init__(self, vocabulary: Vocabulary) -> None: ...
    def forbid(self, tokens: Sequence[int], logits: Sequence[float]) -> list[float]:
        """Logits (V) of the token after others -> the same, minus infinity where a word would be repeated"""

class CaptionPool:
    """Captions of other pictures and their embeddings; engines/runtime/caption_pool.h."""

    def __init__(self, path: str) -> None:
        """Map a file of blip2rt.matching.pool. Raises RuntimeError with the reason."""
    @staticmethod
    def of_bytes(data: bytes) -> CaptionPool:
        """The same of a file's contents."""
    @staticmethod
    def pack(
        fingerprint: str,
        projection: NDArray[np.float32],
        codes: NDArray[np.float32],
        texts: Sequence[Sequence[int]],
        vocab_size: int,
    ) -> bytes:
        """projection (E, D), and the codes (N, D) and token ids of N captions -> a file's contents"""
    @staticmethod
    def with_fingerprint(data: bytes, fingerprint: str) -> bytes:
        """A file's contents for another model with equal embeddings and tokens"""
    @staticmethod
    def is_pool(beginning: bytes) -> bool:
        """Whether a file that begins like this is a pool."""
    @property
    def fingerprint(self) -> str:
        """Of the model whose embeddings and tokens the pool has."""
    def __len__(self) -> int: ...
    def nearest(self, image_embeds: NDArray[np.float32]) -> list[list[int]]:
        """image_embeds (Q, E) -> the token ids of the captions nearest to the image, best first"""
    def guide(self, image_embeds: NDArray[np.float32], end: int) -> Guide:
        """image_embeds (Q, E) and the token that ends captions -> the guide of the image's caption"""
    def answer_guide(
        self, image_embeds: NDArray[np.float32], question: str, asked: Sequence[int], vocabulary: Vocabulary | None
    ) -> Guide:
        """image_embeds (Q, E), a question and its tokens -> the guide of its answer

        vocabulary: None unless the question asks for a plural.
        """

def asks_for_plural(question: str) -> bool:
    """Whether a question asks for things, as "what are on the table?" does."""

class ShortQuestion:
    """A question that needs no generated answer."""

    @property
    def kind(self) -> str:
        """What `text` is: presence ("a dog"), statement ("a dog is swimming"), colour ("what color is the dog?"),
        number ("how many dogs are there?"), choice (a question that names its answers), or fixed (the answer).
        """
    @property
    def text(self) -> str: ...
    @property
    def subject(self) -> str:
        """Of a statement: "a dog"."""
    @property
    def negated(self) -> bool:
        """Whether a yes says that it is not so."""
    @property
    def choices(self) -> list[str]:
        """What a choice offers, or the colour that is asked about."""

def short_question(question: str) -> ShortQuestion | None:
    """Read a question; None if its answer must be generated."""

def plain_question(question: str) -> str:
    """Return "how many dogs are there?" for "### User: COUNT the dogs"."""

def phrase_of(question: str) -> str | None:
    """Return "a cat" for "Is there a cat in the picture?"; None if a text does not ask whether something is there."""

def is_phrase(text: str) -> bool:
    """Whether a text is so short that it names a thing, as "a black cat" does. Longer ones are sentences."""

def question_of(phrase: str) -> str:
    """Return "is there a cat?" for "a cat"."""

def with_article(phrase: str) -> str:
    """Return "a cat" for "cat". Plurals, mass nouns, sentences and phrases with an article stay."""

def without_article(phrase: str) -> str:
    """Return "cat" for "a cat"."""

def plural_of(noun: str) -> str:
    """Return "cats" for "cat", by the last word's ending."""

def tidied(text: str) -> str:
    """Put a generated text on one line, without spaces before punctuation and clitics."""

def cleaned_up(text: str) -> str:
    """Do what Hugging Face's clean_up_tokenization does."""

def has_words(text: str) -> bool:
    """Whether a text has a letter or a digit."""

def clean_caption(text: str) -> str:
    """Normalise a text like the reference's caption processor: lower case, no sentence punctuation, single spaces."""

class Signals:
    """What graphs say about B texts and their images, by the names of engines/runtime/signals.h."""

    def __init__(self, texts: Sequence[str], names: Sequence[str], mean_text: Sequence[float]) -> None:
        """names: of the signals of each text. mean_text (E): what base_cosine compares images with."""
    @property
    def runs(self) -> list[tuple[str, list[int], list[str]]]:
        """What the caller computes: the output, the pairs whose images it reads, and the texts.

        image_embeds (Q * E) of pairs, text_embeds (E) of texts; itm_logits (2), likelihoods (1) and yes_odds (2: with
        the image and without) of pairs and a text for each.
        """
    def add(self, run: int, values: NDArray[np.float64]) -> None:
        """Add the output of a run: a row for each of its pairs or texts."""
    def values(self, name: str) -> list[float]:
        """A signal of all texts (B). Raises BundleError for a query that the images do not have."""

class Calibrator:
    """Signals -> matches and calibrated probabilities, as a bundle weighs them. Any thread may use it."""

    def __init__(self, retrieval: object, calibration: object | None) -> None:
        """Take the weights of bundle.manifest.RetrievalSpec and Calibration."""
    @property
    def rates_statements(self) -> bool:
        """Whether the bundle is calibrated for texts, by signals that this version computes."""
    @property
    def rates_captions(self) -> bool:
        """The same for captions."""
    @property
    def rates_labels(self) -> bool:
        """The same for labels."""
    def short_question(self, question: str, options: GenerationOptions) -> ShortQuestion | None:
        """Read a question; None if its answer must be generated, or if options shape the words of the answer."""
    def match_signals(self, texts: Sequence[str]) -> Signals: ...
    def statement_signals(self, texts: Sequence[str]) -> Signals: ...
    def caption_signals(self, texts: Sequence[str], scores: Sequence[float]) -> Signals: ...
    def matches(self, signals: Signals) -> list[tuple[float, float, float, float | None, float]]:
        """The fields of blip2rt.Match for each text of match_signals, whose runs were added."""
    def probabilities(self, signals: Signals) -> list[float]:
        """The probability that each text is true."""
    def confidence(self, signals: Signals) -> list[float]:
        """The probability that each caption is right."""
    def short_answers(
        self,
        asked: Sequence[ShortQuestion],
        measure: Callable[[Signals, list[int]], object],
        score: Callable[[int, str, list[str]], Sequence[float]],
    ) -> list[tuple[str, float]]:
        """A question about each image -> the answer to each and its log-probability.

        measure: runs what signals of texts need, of which each has the number of its image. score: the number of an
        image, a question and answers -> their answer_scores.
        """

def answer_scores(given: Sequence[float], without: Sequence[float]) -> list[float]:
    """log p(answer | image, question), log p(answer | question) or nothing -> how likely each answer is"""

def best_choice(question: str, scores: Sequence[float], probabilities: Sequence[float]) -> int:
    """The number of the choice that fits a question best, by answer_scores and the probability that each is true.

    The latter count unless the question asks about a part of the picture, such as a colour. They may be empty.
    """

class GainRun:
    """Texts for Generator.likelihoods, with images and without."""

    @property
    def prefixes(self) -> list[int]:
        """The image of each prompt; the number behind the last image is the mean_prefix."""
    @property
    def prompts(self) -> list[list[int]]: ...
    @property
    def images(self) -> list[int]:
        """The prompt of each text."""
    @property
    def texts(self) -> list[list[int]]: ...

class ImageGain:
    """How much likelier an image makes texts, or a yes. Keeps what was computed without an image. For all threads."""

    def __init__(self, capacity: int = 8192) -> None: ...
    def __len__(self) -> int: ...
    def texts(
        self, count: int, images: Sequence[int], prompt: Sequence[int], texts: Sequence[Sequence[int]]
    ) -> GainRun:
        """B texts behind one prompt, and the image of each, of `count` images -> what must be read"""
    def questions(
        self,
        count: int,
        images: Sequence[int],
        asked: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        shares: bool,
    ) -> GainRun:
        """The same for the odds of two answers to B questions.

        shares: what all questions begin with is read once for each image; not in an encoder-decoder.
        """
    def finish(self, run: GainRun, logs: Sequence[float]) -> tuple[list[float], list[float]]:
        """The log-probabilities of a run's texts -> values with the image and without (B)"""

class Labels:
    """Short names for what pictures show, with their parents and synonyms. For all threads."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Texts, each once; "animal|dog" is the label dog below animal. Raises OptionError with every fault."""
    @staticmethod
    def everyday() -> Labels:
        """The labels that come with blip2rt."""
    def __len__(self) -> int: ...
    @property
    def entries(self) -> list[tuple[str, list[str], list[str]]]:
        """Name, parents from the most general on, and synonyms of each label."""
    @property
    def embedded(self) -> list[str]:
        """The text of each label that is embedded."""
    def named_in(self, captions: Sequence[str]) -> list[int]:
        """1 for each label that captions of a picture name, by any of its words or plurals, else 0."""

class Tagger:
    """Chooses labels of pictures from one list. For all threads."""

    def __init__(self, labels: Labels, calibration: object, top: int, threshold: float) -> None:
        """top: most labels of a picture. threshold: their least probability. calibration: as in Calibrator."""
    @property
    def reads_captions(self) -> bool:
        """Whether it weighs if the picture's caption names a label."""
    def nearness(self, image_embeds: NDArray[np.float32], label_embeds: NDArray[np.float32]) -> list[float]:
        """image_embeds (Q, E), label_embeds (L, E) -> how near each label is: its largest cosine unless calibrated"""
    def tags(
        self, image_embeds: NDArray[np.float32], label_embeds: NDArray[np.float32], caption: str
    ) -> list[tuple[int, float]]:
        """The numbers of the labels that a picture shows, with their probabilities, the likeliest first."""

class Resize:
    """A picture that is being resized, with the same result as Pillow, bit by bit."""

    def __init__(self, from_size: tuple[int, int], to_size: tuple[int, int], filter: str) -> None:
        """Start without rows. Raises ValueError.

        from_size, to_size: (width, height), at least 1.
        filter: "box", "bilinear", "hamming", "bicubic" or "lanczos", with Pillow's meaning.
        """

    def add(self, rows: bytes) -> None:
        """Add the next whole rows from the top, four bytes a pixel (RGBX). Raises ValueError."""
    def add_lent(self, schema: object, rows: object) -> None:
        """Add rows from the capsules of `__arrow_c_array__`, four bytes a pixel, without a copy. Raises ValueError."""
    def result(self) -> NDArray[np.uint8]:
        """Return (height, width, 3). Raises ValueError if rows are missing."""

class Vocabulary:
    """The text of every token, in bytes. Stop strings are searched for in it."""

    def __init__(self, tokens: Sequence[bytes]) -> None: ...
    def __len__(self) -> int: ...
    @property
    def ends(self) -> NDArray[np.uint8]:
        """The bytes of tokens + 1 uint64 numbers: token i has the bytes [ends[i], ends[i + 1])."""
    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The bytes of all tokens, concatenated."""

class Tokenizer:
    """A tokenizer.json, read and applied as the library `tokenizers` does it."""

    def __init__(self, json: bytes) -> None:
        """Raises NotImplementedError for a part that the core does not know, and RuntimeError for other faults."""
    def encode(self, pieces: Sequence[tuple[str, bool]], layout: bool, max_tokens: int | None = None) -> list[int]:
        """Return the ids of consecutive (text, whether special tokens in it are plain text).

        layout: add the tokens around a text, such as [CLS] ... [SEP]. Raises RuntimeError if a text has no ids.
        """
    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...
    def token_bytes(self, size: int) -> list[bytes]:
        """Return the bytes that tokens 0 to size - 1 add to a text; special tokens add their names."""
    @property
    def added_tokens(self) -> list[tuple[int, str, bool]]:
        """Added tokens by id: (id, text, whether it is special)."""

def open_tokenizer(file: bytes) -> Tokenizer:
    """Open the tokenizer.json at a path. Raises BundleError."""

class LlmTokenizer:
    """Prompts -> token ids of the language model, and back to text. Raises BundleError when its file fails."""

    def __init__(self, file: str, tokenizer: Tokenizer, spec: object, special_tokens: bool = True) -> None:
        """file: names the tokenizer in errors.

        spec: a bundle.manifest.LlmSpec. special_tokens: whether "<|im_end|>" in a caller's text is that token.
        """
    def encode(self, prompt: Prompt | str) -> list[int]:
        """A prompt -> its token ids, with the special tokens of the model's prompts. Raises OptionError.

        A str is a caller's text without a template.
        """
    def encode_more(self, prompt: Prompt | str) -> list[int]:
        """A prompt that continues another text -> its token ids. Raises OptionError."""
    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text on one line, without special tokens or spaces before punctuation."""
    def text(self, ids: Sequence[int]) -> str:
        """Token ids -> text as Hugging Face's tokenizer decodes it, without special tokens, stripped."""
    def written(self, ids: Sequence[int]) -> str:
        """Token ids -> text with the names of special tokens."""
    def shown(self, ids: Sequence[int]) -> list[int]:
        """Token ids of an answer up to the first that begins or ends a chat turn."""
    @property
    def turns(self) -> dict[int, str]:
        """Special tokens that begin or end a chat turn, by id, except stop tokens."""
    def vocabulary(self) -> Vocabulary:
        """The text of every token of the language model; special tokens have their names. Computed once."""

class QFormerTokenizer:
    """Texts -> token ids and mask of the Q-Former, in the tokenizer's template: [CLS] ... [SEP]."""

    def __init__(self, file: str, tokenizer: Tokenizer, spec: object, special_tokens: bool = True) -> None:
        """As in LlmTokenizer. spec: a bundle.manifest.RetrievalSpec or QuestionSpec."""
    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """B texts -> token_ids (B, L) int64, text_mask (B, L) int64, 1 for a token and 0 for padding.

        L is the longest text's length in tokens; texts too long for the model are cut. Raises OptionError.
        """
    def written(self, text: str) -> str:
        """The text in the form that the model was trained on."""

class GenerationOptions:
    """Checked options of a generation; engines/search/options.h documents them. Where it is taken, so is a dict."""

    def __init__(self, **given: Any) -> None:
        """Options by name, over the defaults. Raises RuntimeError with every fault."""
    def changed(self, **given: Any) -> GenerationOptions:
        """Return the same with other values of some options."""
    @property
    def num_beams(self) -> int: ...
    @property
    def num_return_sequences(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def min_new_tokens(self) -> int: ...
    @property
    def counts_prompt(self) -> bool: ...
    @property
    def image_token_id(self) -> int: ...
    @property
    def forced_prefix(self) -> list[int]: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def max_time(self) -> float:
        """Seconds; infinity if there is no limit."""
    @property
    def do_sample(self) -> bool: ...
    @property
    def first_image(self) -> int: ...
    @property
    def vocabulary(self) -> Vocabulary | None: ...

class CallerOptions:
    """The fields of blip2rt.Options that a caller gave; engines/language/options.h checks them."""

    def __init__(self, given: Mapping[str, Any], defaults: CallerOptions | None = None, captions: bool = False) -> None:
        """Options by name, over `defaults`; None is not given. captions: also raw and pool.

        Raises OptionError for unknown names, which also lists the faults of the others.
        """
    @property
    def raw(self) -> bool: ...
    @property
    def pool(self) -> str | Literal[False] | None:
        """A file, False for no pool, or None for the bundle's."""

class Language:
    """The language side of a bundle without its graphs: prompts, checked options, and tokens as texts."""

    def __init__(self, file: str, tokenizer: Tokenizer, manifest: object, special_tokens: bool = True) -> None:
        """manifest: a bundle.manifest.Manifest. The others: see LlmTokenizer."""
    @property
    def tokenizer(self) -> LlmTokenizer: ...
    def caption_prompt(self, prompt: str | None) -> Prompt:
        """The prompt that a caption continues; None is the bundle's own. Raises OptionError."""
    def ask_prompt(self, question: str) -> Prompt:
        """A question -> the bundle's template, filled with it. Raises OptionError."""
    def qformer_question(self, question: str) -> str:
        """The text that the Q-Former reads for a question; empty if it reads none."""
    @property
    def next_question(self) -> list[str]:
        """What begins the next question of a conversation, as the template does: an answer ends before it."""
    def settings(
        self, task: str, options: CallerOptions, prompts: Sequence[Prompt | str], used: int = 0
    ) -> GenerationOptions:
        """Options for a task ("caption", "ask") and the prompts that it continues. Raises OptionError with every fault.

        used: positions that a conversation has taken, besides the image's and the prompts'.
        """
    def forced_prefix(self, options: CallerOptions, after_prompt: bool) -> list[int]:
        """Tokens of the option forced_prefix. After a prompt it starts a new word, as answers do in training."""
    def text_of(
        self,
        token_ids: Sequence[int],
        score: float,
        options: GenerationOptions,
        single_line: bool = False,
        timed_out: bool = False,
    ) -> tuple[str, float, list[int], bool]:
        """A generated text: (text, score, tokens, truncated), as in blip2rt.Scored. timed_out: max_time ended it."""
    def caption_tokens(
        self, texts: Sequence[str], prefix_length: int, max_tokens: int | None = None, complete: bool = True
    ) -> tuple[list[int], list[list[int]]]:
        """Texts -> the tokens of the bundle's own prompt, and of each text as its caption.

        max_tokens: of a text with its stop token; the rest is cut off. complete: whether a stop token ends it.
        """
    def answer_tokens(
        self, questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The tokens of questions, and of answers with a stop token; OptionError if one does not fit behind another."""
    def need_guidable(self, prompt: Prompt | str) -> None:
        """Raise OptionError for a caption that no pool can guide."""
    def need_chat(self) -> None:
        """Raise CapabilityError for a model whose earlier steps see each question, so that no cache can keep them."""

class Turn:
    """A checked question of a Dialogue."""

    @property
    def prompt(self) -> Prompt: ...
    @property
    def options(self) -> GenerationOptions: ...
    @property
    def until(self) -> list[str]:
        """The answer ends before the first of these."""
    @property
    def token_ids(self) -> list[int]:
        """Of the question, and of what was said before and never read."""

class Dialogue:
    """A conversation about one image without the model: what each question reads, and how many positions are taken."""

    def __init__(self, language: Language, options: CallerOptions) -> None:
        """options: the defaults of every question. Raises OptionError."""
    @property
    def max_beams(self) -> int:
        """The largest number of beams that a question may have."""
    def begin(self, question: str, options: CallerOptions) -> Turn:
        """Check a question. Raises OptionError."""
    def read(self, turn: Turn) -> None:
        """Note that the language model reads a turn."""
    def answered(self, turn: Turn, answer: Sequence[int]) -> None:
        """Note that the answer to a turn, of these tokens, is known without the language model."""
    def add_answer(self, tokens: int) -> None:
        """Note that the answer to the turn that was read has so many tokens. Called before the next turn."""

class TextStream:
    """Tokens of one text, one by one -> pieces of the text.

    Joined, they are LlmTokenizer.text of all shown tokens or, on a single line, LlmTokenizer.decode. A piece never ends
    within a character, nor where later tokens may still change it.
    """

    def __init__(self, tokenizer: LlmTokenizer, given: Sequence[int] = [], single_line: bool = False) -> None:
        """given: tokens at the beginning of the text."""
    def push(self, token_id: int) -> str:
        """Add a token. Return the new part of the text that is final; it may be empty."""
    def end(self) -> str:
        """Return the rest of the text."""
    def rest(self, text: str) -> str:
        """Return what the pieces so far lack of the whole text."""
    @property
    def ended(self) -> bool:
        """Whether a token that begins or ends a turn has ended the text."""

class StopCut:
    """Pieces of a text -> its pieces before the first of some stop strings. Holds back what may begin one."""

    def __init__(self, stops: Sequence[str]) -> None: ...
    def push(self, piece: str) -> str:
        """Add a piece. Return the new part of the text that is final; it may be empty."""
    def finish(self, whole: str | None = None) -> tuple[str, str]:
        """Return the text, and what its pieces lack of it. whole: the uncut text, if it is not that of the pieces."""
    @property
    def stopped(self) -> bool: ...

def kernels() -> tuple[str, dict[str, str]]:
    """Return the source of the GPU kernels, and the headers that it includes, by name."""

def processor_kernels() -> list[str]:
    """Return the core's kernels that this processor runs, such as "int4 avx512". ONNX Runtime runs the rest."""

def kernel_levels() -> list[str]:
    """Return the values of BLIP2RT_KERNELS that this processor supports, the best one first."""

def missing_instructions() -> str:
    """Return an instruction set that NumPy and ONNX Runtime need and the processor lacks; "" if it has all."""

class SearchBatch:
    """The searches of a batch of images, in one block of memory that a GPU can continue."""

    def __init__(
        self,
        images: int,
        given: Sequence[int],
        vocab_size: int,
        options: GenerationOptions | Mapping[str, Any],
        before: Sequence[Sequence[int]] = ...,
    ) -> None: ...
    @property
    def memory(self) -> NDArray[np.uint8]:
        """The answers' blocks, to be copied to the device and overwritten with the result."""
    @property
    def plan(self) -> dict[str, Any]:
        """Parameters for the device: images (of each answer), beams, stride (bytes of a block), ..."""
    @property
    def options(self) -> GenerationOptions: ...
    def advance(self, scores: NDArray[np.float32], last: bool = False) -> None:
        """Take a step of every answer on the CPU. Overwrites scores (rows, V).

        An answer has 1 row in the first step, then one row for each beam. last: no step follows.
        """
    def check(self) -> None:
        """Raise RuntimeError with the reason if an answer cannot continue."""
    @property
    def done(self) -> bool: ...
    def added(self) -> list[tuple[int, int, int]]:
        """Return (image, draw, token id) of each token that settled since the last call."""
    def results(self) -> Sequences:
        """Return each image's best sequences. Before the search is done, return what exists."""

Sequences = list[list[tuple[list[int], float]]]
"""Each image's best sequences: new token ids without the stop token, and their score."""

class Generation:
    """A running generation; one thread steps it at a time."""

    def step(self) -> list[tuple[int, int, int]]:
        """Choose the next token of each running answer. Return (image, draw, token id) of each settled one."""
    def close(self) -> None:
        """End the generation. Its results are what exists by then."""
    @property
    def done(self) -> bool: ...
    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of all steps after the first, and the part of them that the graphs take."""
    def results(self) -> Sequences:
        """Return each image's best sequences. Before the generation is done, return what exists."""
    def cut(self, image: int, tokens: int) -> bool:
        """Whether max_time ended a text of `tokens` tokens about that image."""

class Generator:
    """A language model: the graphs `embed` and `llm`, and `encoder` if it has one.

    Any number of threads may call it. Options: docs/inside/design.md.
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
        options: GenerationOptions | Mapping[str, Any] = ...,
        on_token: Callable[[int, int, int], object] | None = None,
    ) -> Sequences:
        """Answer B prompts after prefix_embeds (B, Q, D).

        on_token(image, draw, token id): called for every token of greedy search and sampling; False ends the call.
        """
    def generate_rounds(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        rounds: Sequence[GenerationOptions | Mapping[str, Any]],
    ) -> Sequences:
        """Answer B prompts with each round's options: B answers of the first round, then of the next.

        Prompts are read once, and the rounds share their steps, unless the model is an encoder-decoder or its prompt
        sees itself in both directions.
        """
    def begin(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions | Mapping[str, Any] = ...,
    ) -> Generation:
        """Begin what generate does, for the caller to step."""
    def likelihoods(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        images: Sequence[int],
        texts: Sequence[Sequence[int]],
    ) -> list[float]:
        """Return the sum of each text's log-probabilities after its image: prefix_embeds (B, Q, D), B prompts.

        images: the number of each text's image. An image is read once if its texts follow each other.
        """

class Submitted:
    """The requests of one call to a Batcher. Any thread may use it. Dropping it cancels them."""

    def wait(self, seconds: float) -> bool:
        """Wait until all requests have ended or, with each_token, a token has arrived. Return whether that is so."""
    def take(self) -> list[tuple[int, int, int]]:
        """Return (image, draw, token id) of each token that settled since the last call."""
    def cancel(self) -> None:
        """End the requests within a step. The results are what exists by then."""
    def watch(self, number: int) -> None:
        """From now on, Batcher.news returns this number whenever there is progress."""
    @property
    def done(self) -> bool: ...
    def results(self) -> Sequences:
        """Return each image's best sequences, once done. Raises RuntimeError if a request has failed."""
    def lengths(self) -> list[tuple[int, int]]:
        """Return, for each image, the positions of image and prompt, and how many were cached. Once done."""
    def cut(self, image: int, tokens: int) -> bool:
        """Whether max_time ended a text of `tokens` tokens about that image. Once done."""
    @property
    def timed_out(self) -> bool:
        """Whether max_time ended a text. Once done."""

class Batcher:
    """A thread that decodes the requests of all threads together. Any number of threads may call it.

    Requests wait, in the order of arrival, until the rows (answers, beams, draws) and positions that they need are
    free. The next step then reads from their prompts and decodes the running answers.
    """

    def __init__(self, generator: Generator, rows: int, positions: int, read: int = 128, kept_bytes: int = 0) -> None:
        """rows, positions: sizes of the pool of keys and values. read: most positions of prompts that a step reads.

        kept_bytes: size of the cache of prompt prefixes.
        """

    def submit(
        self,
        prefix_embeds: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions | Mapping[str, Any] = ...,
        images: Sequence[bytes] = ...,
        each_token: bool = False,
    ) -> Submitted:
        """Answer B prompts after prefix_embeds (B, Q, D), as Generator.generate does. Return at once.

        images: names of the prefixes in the cache; an empty name is not cached.
        Raises RuntimeError for bad options, and for requests that never fit rows and positions.
        """
    def news(self, seconds: float) -> list[int]:
        """Wait up to `seconds` for progress of watched calls. Return their numbers."""
    def close(self) -> None:
        """End the thread after its step. Requests that have not ended fail."""
    @property
    def counters(self) -> dict[str, int]:
        """steps, tokens, requests: totals. waiting, running: requests now. rows, positions: of the pool, in use.

        hits, misses: named images with and without a cached prefix; kept_positions: read from the cache;
        kept_bytes: size of the cache.
        """

class Chat:
    """A conversation about one image, which stays in the cache; one thread uses it at a time."""

    def __init__(
        self, generator: Generator, prefix_embeds: NDArray[np.float32], max_rows: int, capacity: int
    ) -> None: ...
    def ask(self, prompt: Sequence[int], options: GenerationOptions | Mapping[str, Any] = ...) -> Generation:
        """Begin the answer to [image][conversation so far][prompt]. Ends the previous answer if it still runs."""
    @property
    def positions(self) -> int:
        """Positions of the cache in use when the last question was asked."""
