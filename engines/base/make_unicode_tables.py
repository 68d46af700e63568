"""Write unicode_tables.h: the properties and mappings of characters that the library `tokenizers` uses.

The library mixes several versions of Unicode. So this script asks the library itself for each property, character by
character; only the grapheme classes come from the package `regex`. After an update of the library, run
`PYTHONPATH=. python engines/base/make_unicode_tables.py`.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import regex
from tokenizers import Regex, normalizers, pre_tokenizers

from tests.tiny.tokenizers import charsmap

CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
CATEGORIES = "Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cs".split()
GRAPHEMES = "Control Extend ZWJ Regional_Indicator Prepend SpacingMark L V T LV LVT".split()  # 1 to 11; CR and LF apart
CONJUNCTS = "Consonant", "Linker", "Extend"
DIGITS = [chr(code) for code in range(0x20, 0x7F) if chr(code) not in '"\\?']
BASE = len(DIGITS) // 2
AFTER_A = normalizers.Precompiled(charsmap({"a": "b"}))  # replaces the whole grapheme cluster of an "a"


def matches(pattern: str) -> list[bool]:
    """Whether Oniguruma's pattern matches each character."""
    text, marks = "".join(CHARACTERS), ("\x01", "\x02")
    replaced = [normalizers.Replace(Regex(pattern), mark).normalize_str(text) for mark in marks]
    return [each == marks for each in zip(*replaced, strict=True)]


def categories() -> list[int]:
    found = [0] * len(CHARACTERS)
    for number, name in enumerate(CATEGORIES):
        if number:
            found = [number if hit else old for hit, old in zip(matches(rf"\p{{{name}}}"), found, strict=True)]
    return found


def splits(splitter: pre_tokenizers.PreTokenizer, count: int) -> list[bool]:
    """Whether a letter before and a letter after each character end up in `count` pieces in all."""
    return [len(splitter.pre_tokenize_str(f"a{character}a")) == count for character in CHARACTERS]


def combining_classes() -> list[int]:
    decompose = normalizers.NFD().normalize_str

    def before(first: str, second: str) -> bool:
        return bool(decompose(f"a{second}{first}") == f"a{first}{second}" != f"a{second}{first}")

    def is_mark(character: str) -> bool:
        return decompose(character) == character and (before("\u0334", character) or before(character, "\u0345"))

    marks = [character for character in CHARACTERS if is_mark(character)]  # the first has class 1, the other 240
    known = {unicodedata.combining(character): character for character in reversed(marks)}

    def of(character: str) -> int:
        fits = [
            number for number, other in known.items() if not before(character, other) and not before(other, character)
        ]
        assert len(fits) == 1, (hex(ord(character)), fits)
        return fits[0]

    found = {character: of(character) for character in ["\u0334", "\u0345", *marks]}
    return [found.get(character, 0) for character in CHARACTERS]


def classes(names: Iterable[str], form: str) -> list[int]:
    patterns = [regex.compile(rf"\p{{{form}={name}}}") for name in names]
    return [next((i + 1 for i, p in enumerate(patterns) if p.match(character)), 0) for character in CHARACTERS]


def as_in_library(character: str, grapheme: int) -> int:
    """The grapheme class of a character in the library, whose Unicode is older: see Charsmap in normalizers.cpp."""
    extends, prepends = 2, 5
    joins = AFTER_A.normalize_str(f"a{character}") == "b"
    if joins != (grapheme in (extends, 3, 6)):
        return extends if joins else 0
    if (
        grapheme == prepends
        and normalizers.Precompiled(charsmap({character: "b"})).normalize_str(f"{character}a") != "b"
    ):
        return 0
    return grapheme


def properties() -> list[int]:
    """All properties of each character in one number; unicode.h has the same layout."""
    pictures = regex.compile(r"\p{Extended_Pictographic}")
    bert = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False)
    decompose = normalizers.NFD().normalize_str
    clean = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False
    )
    flags = [
        matches(r"\w"),
        matches(r"\s"),
        splits(pre_tokenizers.Whitespace(), 1),
        splits(pre_tokenizers.WhitespaceSplit(), 2),
        splits(pre_tokenizers.Digits(), 3),
        splits(pre_tokenizers.Punctuation(), 3),
        [clean.normalize_str(f"a{character}a") == "aa" for character in CHARACTERS],
        [decompose(character) == character and bert.normalize_str(f"a{character}") == "a" for character in CHARACTERS],
    ]
    graphemes = list(map(as_in_library, CHARACTERS, classes(GRAPHEMES, "GCB")))
    graphemes = [12 if not g and pictures.match(c) else g for g, c in zip(graphemes, CHARACTERS, strict=True)]
    numbers = categories()
    for i, flag in enumerate(flags):
        numbers = [number | hit << (5 + i) for number, hit in zip(numbers, flag, strict=True)]
    for shift, column in ((13, graphemes), (17, classes(CONJUNCTS, "InCB")), (19, combining_classes())):
        numbers = [number | value << shift for number, value in zip(numbers, column, strict=True)]
    return numbers


def mappings() -> Iterator[list[int]]:
    """(kind, code, length, codes...) of lower case, and of canonical decomposition and composition."""
    lower, nfd, nfc = (make().normalize_str for make in (normalizers.Lowercase, normalizers.NFD, normalizers.NFC))
    for kind, function in enumerate((lower, nfd)):
        last = 0
        for character in CHARACTERS:
            mapped = function(character)
            hangul = 0xAC00 <= ord(character) < 0xD7A4
            if mapped == character or hangul:
                continue
            composes = kind == 1 and len(mapped) > 1 and nfc(mapped) == character
            assert len(mapped) < 32
            yield [2 * len(mapped) + composes, ord(character) - last, *map(ord, mapped)]
            last = ord(character)
        yield [0]


def relative(entries: Iterable[list[int]]) -> Iterator[int]:
    """All numbers of the mappings, with codes as differences from the mapping before: even if positive."""
    last = [0] * 32
    for kind, *codes in entries:
        yield kind
        yield from codes[:1]
        for i, code in enumerate(codes[1:]):
            yield 2 * abs(code - last[i]) - (code < last[i])
            last[i] = code


def packed(numbers: list[int]) -> Iterator[int]:
    """Literals and copies in turns: the number of literals, the literals, a copy's length and its distance."""
    places, literals, at = defaultdict[tuple[int, ...], list[int]](list), list[int](), 0

    def shared(place: int) -> int:
        return next((i for i in range(len(numbers) - at) if numbers[place + i] != numbers[at + i]), len(numbers) - at)

    while at < len(numbers):
        length, place = max(((shared(each), each) for each in places[tuple(numbers[at : at + 5])]), default=(0, 0))
        if length:
            yield from (len(literals), *literals, length, at - place)
            literals = []
        else:
            literals.append(numbers[at])
        for i in range(at, at + (length or 1)):
            places[tuple(numbers[i : i + 5])].append(i)
        at += length or 1
    yield from (len(literals), *literals, 0, 0)


def written(numbers: Iterable[int]) -> str:
    """Numbers -> characters: each is written in base BASE, the last digit from the lower half."""
    text = []
    for number in numbers:
        digits = [DIGITS[number % BASE]]
        while number >= BASE:
            number = number // BASE - 1
            digits.append(DIGITS[BASE + number % BASE])
        text += reversed(digits)
    return "".join(text)


def lines(name: str, numbers: Iterable[int]) -> Iterator[str]:
    text = written(packed(list(numbers)))
    yield f"inline constexpr char {name}[] ="
    rows = [f'    "{text[at : at + 112]}"' for at in range(0, len(text), 112)]
    yield "\n".join(rows) + ";"


def main() -> None:
    numbers = properties()
    kinds = sorted(set(numbers), key=lambda number: (-numbers.count(number), number))
    ranges, last = [], None
    for character, number in zip(CHARACTERS, numbers, strict=True):
        if number != last or ord(character) == 0xE000:
            ranges.append((ord(character), kinds.index(number)))
        last = number
    starts = [code for code, _ in ranges]
    coded = [part for (code, kind), before in zip(ranges, [0, *starts], strict=False) for part in (code - before, kind)]
    out = ["// Written by make_unicode_tables.py. Do not edit.", "#pragma once", "// clang-format off"]
    out.append("namespace blip2rt {")
    out += lines("kPropertyKinds", kinds)
    out += lines("kPropertyRanges", coded)
    out += lines("kMappings", relative(mappings()))
    Path(__file__).with_name("unicode_tables.h").write_text("\n".join([*out, "}  // namespace blip2rt", ""]))


if __name__ == "__main__":
    main()
