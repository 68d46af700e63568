"""Compare the core's tokenizers with the library: `python -m tests.fuzz.tokenizers [--texts N] [KIND...]`."""

from __future__ import annotations

import argparse
import random
from typing import TYPE_CHECKING

from blip2rt.native import native
from tests.tiny.tokenizers import KINDS, random_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def compare(library: Tokenizer, texts: int, seed: int) -> None:
    """Encode and decode random texts, and random ids, by both. Raise AssertionError at the first difference."""
    core, rng = native.Tokenizer(library.to_str().encode()), random.Random(seed)
    assert len(core) == library.get_vocab_size()
    highest = max(library.get_vocab().values()) + 2
    for text in random_texts(rng, texts):
        layout = rng.random() < 0.5
        ids = library.encode(text, add_special_tokens=layout).ids
        got = core.encode([(text, False)], layout)
        assert got == ids, f"{text!r}: {got} != {ids}"
        ids = rng.choice([ids, [rng.randrange(highest) for _ in range(rng.randrange(8))]])
        decoded, wanted = core.decode(ids, layout), library.decode(ids, skip_special_tokens=layout)
        assert decoded == wanted, f"{ids}: {decoded!r} != {wanted!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND")
    parser.add_argument("--texts", type=int, default=1_000_000)
    args = parser.parse_args()
    for kind in args.kinds:
        seed = random.randrange(2**31)
        print(f"{kind}: seed {seed}", end=", ", flush=True)
        compare(KINDS[kind](), args.texts, seed)
        print(f"{args.texts:,} texts equal", flush=True)


if __name__ == "__main__":
    main()
