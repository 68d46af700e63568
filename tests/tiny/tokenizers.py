"""Small tokenizers of every kind that bundles hold, and random texts for them."""

import functools
import json
import random
import struct
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import blip2rt

NANO = Path(__file__).parents[2] / "blip2rt" / "models" / "nano"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REGEXES = {
    "llama 3": CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen 2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTIONS
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + CONTRACTIONS
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "lazy": r"\b(\p{L})+?(?:s\b|(?=ing)|(?:e|o)??\b)|" + "|".join(f"{i}x" for i in range(60)) + r"|.*?\b| ??\p{N}??",
}
CORPUS = (Path(blip2rt.__file__).read_text() + "The dogs aren't running; naïve cafés, ﬁne 3.5 ① 日本語 ｱ й.\n") * 20


def _bpe(file: str = "tokenizer.json", **changed: Any) -> Tokenizer:
    """Nano's byte-level BPE without what is around it."""
    data = json.loads((NANO / file).read_text())
    data["model"].update(changed)
    return Tokenizer.from_str(json.dumps(data))


def _byte_level(pre: Any, normalizer: Any = None, **changed: Any) -> Tokenizer:
    tokenizer = _bpe(**changed)
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def _split(name: str, normalizer: Any = None, **changed: Any) -> Tokenizer:
    pre = [pre_tokenizers.Split(Regex(REGEXES[name]), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return _byte_level(pre_tokenizers.Sequence(pre), normalizer, **changed)


def _llama_3() -> Tokenizer:
    tokenizer = _split("llama 3", ignore_merges=True)
    tokenizer.add_special_tokens([AddedToken("<|begin|>", special=True)])
    after = processors.ByteLevel(trim_offsets=False), _begins_with("<|begin|>", tokenizer)
    tokenizer.post_processor = processors.Sequence([*after])
    return tokenizer


def _begins_with(token: str, tokenizer: Tokenizer) -> Any:
    specials = [(token, tokenizer.token_to_id(token))]
    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=specials)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _sentencepiece(gemma: bool = False) -> Tokenizer:
    """BPE with byte fallback, as in Llama 2 and Gemma."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    strip = [decoders.Strip(" ", 1, 0)]
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        strip = []
        strips = AddedToken("[X]", normalized=False, lstrip=True, rstrip=True)
        tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁▁", normalized=False), strips])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.post_processor = _begins_with("<s>", tokenizer)
    return tokenizer


def _llama_metaspace() -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    return tokenizer


def charsmap(replacements: dict[str, str]) -> bytes:
    """SentencePiece's table of replacements as a double array; see Charsmap in the core."""
    texts, offsets = b"", {}
    for text in sorted(set(replacements.values())):
        offsets[text] = len(texts)
        texts += text.encode() + b"\0"
    units, used = [0] * 256, {0}
    tree: dict[int, Any] = {}
    for key, text in replacements.items():
        node = tree
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[-1] = offsets[text]

    def place(node: dict[int, Any], at: int) -> None:
        """Choose where the children of the unit `at` lie; a child is at offset ^ byte, the value at offset ^ 0."""
        labels = [byte for byte in node if byte >= 0] + ([0] if -1 in node else [])
        offset = 1
        while any((at ^ offset ^ label) in used for label in labels):
            offset += 1
        assert offset < 1 << 21
        units.extend([0] * max(0, (at ^ offset | 255) + 1 - len(units)))
        used.update(at ^ offset ^ label for label in labels)
        units[at] |= offset << 10 | (-1 in node) << 8
        if -1 in node:
            units[at ^ offset] = 1 << 31 | node[-1]
        for byte, child in node.items():
            if byte >= 0:
                units[at ^ offset ^ byte] = byte
                place(child, at ^ offset ^ byte)

    place(tree, 0)
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts


@functools.cache
def nmt_nfkc() -> Any:
    """A charsmap of compatible characters, spaces and some pairs with marks."""
    found = {"\t": " ", "\r": " ", "\u200b": " ", "\u3000": " ", "\u00a0": " ", "\ufeff": "", "\u0001": ""}
    for code in [*range(0xA1, 0x2000), *range(0x2100, 0x2200), *range(0x2460, 0x2500), *range(0xFF00, 0xFFF0)]:
        text = unicodedata.normalize("NFKC", chr(code))
        if text != chr(code):
            found[chr(code)] = text
    for letter in "aeioucnAEIOU":
        for mark in "\u0300\u0301\u0308\u0327":
            text = unicodedata.normalize("NFC", letter + mark)
            if len(text) == 1:
                found[letter + mark] = text
    return normalizers.Precompiled(charsmap(found))


def _t5(**changed: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = nmt_nfkc()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in range(5)])
    return tokenizer


def _mt5() -> Tokenizer:
    """As transformers converts newer files: spaces are stripped and joined, bytes stand for unknown characters."""
    tokenizer = _t5()
    parts = [nmt_nfkc(), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]
    tokenizer.normalizer = normalizers.Sequence(parts)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    data = json.loads(tokenizer.to_str())
    data["model"]["vocab"] += [[name, -12.5] for name in BYTES]
    data["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps({**data, "added_tokens": data["added_tokens"][:3]}))


def _bert(**changed: Any) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(NANO / "qformer_tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer(**changed)
    return tokenizer


def _cased_bert() -> Tokenizer:
    tokenizer = _bert(clean_text=False, lowercase=False, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    tokenizer.add_tokens([AddedToken("dog", single_word=True, lstrip=True), AddedToken("[X]", rstrip=True)])
    return tokenizer


def _word_level() -> Tokenizer:
    words = {word: i for i, word in enumerate(["<unk>", "a", "dog", ".", "the", "é"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _bytes(*parts: Any) -> Tokenizer:
    """Unknown characters are bytes, so that ids show every character of the normalized text."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((name, -1.0) for name in BYTES)], 0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(list(parts))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _opt() -> Tokenizer:
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer.post_processor = processors.RobertaProcessing(("<a>", 3), ("<b>", 4))
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": _bpe,
    "opt": _opt,
    "starcoder": lambda: _byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    ),
    "llama 3": _llama_3,
    "qwen 2": lambda: _split("qwen 2", normalizers.NFC()),
    "gpt-4": lambda: _split("gpt-4"),
    "gpt-4o": lambda: _split("gpt-4o"),
    "lazy": lambda: _split("lazy"),
    "llama 2": _sentencepiece,
    "llama 2 with metaspace": _llama_metaspace,
    "gemma": lambda: _sentencepiece(gemma=True),
    "t5": _t5,
    "mt5": _mt5,
    "bert": _bert,
    "cased bert": _cased_bert,
    "cased bert with accents": lambda: _bert(lowercase=False),
    "word level": _word_level,
    "nfc": lambda: _bytes(normalizers.NFC()),
}

WORDS = "a dog the dogs aren't IT'S don't 3.5 12345 Running naïve café ﬁne İstanbul".split()
WORDS += "ſ'ſ straße 日本語 ｶﾞ 한국어 각 й́ नमस्ते".split()
WORDS += ["\n", "\n\n", "  ", "   ", "\t", "\r\n", "\u3000", "\u00a0", "\u200b", "\u200d", "e\u0301\u0327"]
WORDS += ["①", "...", "?!", "_", "🇩🇪", "👩‍👩‍👧"]
SPECIAL = "<s> </s> <unk> <0x41> [CLS] [SEP] [X] <|endoftext|> <|im_end|> <extra_id_1> ▁".split()


def random_texts(rng: random.Random, count: int) -> Iterator[str]:
    """Texts of words, special tokens, and characters of all of Unicode."""
    ranges = [(32, 127), (0, 1024), (0x300, 0x370), (0x900, 0xE00), (0x1100, 0x1200), (0x1D00, 0x2200), (0, 0x30000)]

    def character() -> str:
        code = rng.randrange(*rng.choice(ranges))
        return chr(code) if not 0xD800 <= code < 0xE000 else " "

    parts: tuple[Callable[[], str], ...] = (
        lambda: rng.choice(WORDS) + rng.choice(["", " "]),
        lambda: "".join(character() for _ in range(rng.randrange(1, 6))),
        lambda: rng.choice(SPECIAL),
        lambda: rng.choice(" aA1.'\n"),
    )
    for _ in range(count):
        yield "".join(rng.choices(parts, (6, 3, 1, 3))[0]() for _ in range(rng.randrange(12)))
