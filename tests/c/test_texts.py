"""engines/model changes and reads texts as blip2rt.text and blip2rt.statements do."""

from __future__ import annotations

import random
import subprocess

from blip2rt.statements import is_phrase, phrase_of, question_of, with_article, without_article
from blip2rt.text import clean_caption, clean_up, tidy
from tests.c.build import build
from tests.seeds import new_seed

PIECES = """a|an|the|cat|dogs|people|person|grass|black|of|in|on|picture|photo|image|this|is|are|there|do|does|you|see
|show|visible|here|any|some|please|answer yes or no|two|or|who|it|at all|anyone|apple|bus|children|'s|n't|'|"|.|,|?|!|;
|:|#|(|)|~|*|caf\u00e9|\u03a3\u0391\u03a3|\u03a3|\u0130|\u65e5\u672c|\ufb01|\u2028|\u00a0|\u3000|\x1f|\t|_|7|\u0967|\u00bd|''ll
|I've|we're a|\U0001f600|-|ISTANBUL|STRASSE|\u00df"""
FORMS = (
    "is there {}?",
    "Are there {} in the picture?",
    "Do you see {} here?",
    "does this image show {}",
    "is {} visible?",
    "please, is there {} anywhere? Answer yes or no.",
    "can we spot {} on the photo, please?",
    "is {} in this scene?",
)


def random_text(rng: random.Random, pieces: list[str]) -> str:
    text = "".join(rng.choice(pieces) + rng.choice([" ", " ", " ", "", "  "]) for _ in range(rng.randint(0, 6)))
    return rng.choice(FORMS).format(text.strip()) if rng.random() < 0.5 else text


def expected(text: str) -> list[str]:
    forms = [phrase_of(text) or "-", str(int(is_phrase(text))), question_of(text), with_article(text)]
    forms += [without_article(text), text.strip(), tidy(text), clean_up(text), clean_caption(text)]
    return [*forms, str(int(any(map(str.isalnum, text))))]


def test_texts_equal_those_of_python() -> None:
    rng = random.Random(new_seed())
    pieces = PIECES.replace("\n", "").split("|")
    texts = [random_text(rng, pieces) for _ in range(3000)]
    program = build("text_check") / "text_check"
    done = subprocess.run(
        [program], input="".join(f"{text}\n" for text in texts).encode(), capture_output=True, check=True
    )
    lines = done.stdout.decode().split("\n")
    count = len(expected(""))
    for i, text in enumerate(texts):
        assert lines[i * count : (i + 1) * count] == expected(text), repr(text)
    assert sum(phrase_of(text) is not None for text in texts) > 100
