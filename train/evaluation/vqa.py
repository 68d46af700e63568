"""Accuracy of answers to questions about images: VQAv2's and OK-VQA's (Antol et al. 2015; visualqa.org/evaluation), and
the exact match of GQA. Knows strings only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # apostrophes and colons stay
_NUMBERS = {"none": "0"} | {
    word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
).split()
# Written with one apostrophe too few; the last is the official script's own.
_MENDED = {word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS for i, c in enumerate(word) if c == "'"} | {
    "somebody'd": "somebodyd"
}
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def normalize_answer(text: str) -> str:
    """An answer as the official evaluation compares it: lower case, digits for number words, no articles, no
    punctuation but apostrophes, colons and decimal points, apostrophes where contractions have them."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joined = bool(_COMMA_IN_NUMBER.search(text))
    plain = text
    for mark in _PUNCTUATION:  # between words it parts them; beside a space, or in an answer like 1,000, it goes
        gone = joined or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if gone else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).lower().split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Agreement with human answers, 0 to 1: min(n / 3, 1) of the n others who said the same, averaged over leaving out
    each annotator (the ten subsets of nine).

    Both sides are normalised always; the official script leaves both as they are where all annotators agree.
    """
    given = normalize_answer(answer)
    same = [normalize_answer(truth) == given for truth in truths]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(same)


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 where the answer is one of the truths, after normalisation; else 0."""
    return float(normalize_answer(answer) in {normalize_answer(truth) for truth in truths})
