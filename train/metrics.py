"""Caption metrics: BLEU-4, ROUGE-L and CIDEr of pycocoevalcap. Knows strings only.

Texts are tokenized as the Penn Treebank tokenizer of the COCO evaluation does for plain sentences (lower case, no
punctuation, clitics apart), in Python, since that tokenizer is a Java program; METEOR and SPICE need Java too and are
left out.
"""

from __future__ import annotations

import contextlib
import io
import re

from blip2rt.errors import Blip2rtError

_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+?(?=n't\b)|\w+(?:-\w+)*")


def tokenize(text: str) -> str:
    """Tokens of a caption, joined by spaces."""
    return " ".join(_TOKEN.findall(text.lower().replace("’", "'")))


def caption_metrics(references: list[list[str]], captions: list[str]) -> dict[str, float]:
    """BLEU-1 to 4, ROUGE-L, CIDEr, all times 100, of one caption an image against its references."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise Blip2rtError("pycocoevalcap is not installed; pip install 'blip2rt[eval]'") from error
    truth = {i: [tokenize(text) for text in texts] for i, texts in enumerate(references)}
    made = {i: [tokenize(text)] for i, text in enumerate(captions)}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print as they go
        bleu = Bleu(4).compute_score(truth, made)[0]
        rouge = Rouge().compute_score(truth, made)[0]
        cider = Cider().compute_score(truth, made)[0]
    scores = {f"bleu{n}": value for n, value in enumerate(bleu, 1)} | {"rouge_l": rouge, "cider": cider}
    return {name: 100 * float(value) for name, value in scores.items()}
