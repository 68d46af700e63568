"""Accuracy of answers to questions about images: VQAv2's and OK-VQA's (Antol et al. 2015; visualqa.org/evaluation), and
GQA's exact match.
"""

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
# Spelled with one apostrophe missing; the last entry is the official script's own.
_APOSTROPHES = {word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS for i, c in enumerate(word) if c == "'"} | {
    "somebody'd": "somebodyd"
}
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def normalize_answer(text: str) -> str:
    """Normalize an answer as the official evaluation does: lower case, digits for number words, no articles, no
    punctuation but apostrophes, colons and decimal points, and apostrophes in contractions.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joined = bool(_COMMA_IN_NUMBER.search(text))
    plain = text
    for mark in _PUNCTUATION:  # becomes a space between words; is removed beside a space or in a number like 1,000
        removed = joined or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if removed else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Return agreement with human answers, 0 to 1: min(n / 3, 1) of the n other annotators with the same answer,
    averaged over leaving out each annotator (the ten subsets of nine).

    Both sides are always normalized; the official script skips that if all annotators agree.
    """
    given = normalize_answer(answer)
    same = [normalize_answer(truth) == given for truth in truths]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(same)


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """Return 1 if the normalized answer is one of the normalized truths, otherwise 0."""
    return float(normalize_answer(answer) in {normalize_answer(truth) for truth in truths})
