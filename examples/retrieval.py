"""Find the photographs that fit a text: python examples/retrieval.py "a cup on a table" docs/photo.jpg more.jpg ...

First the cosine of embeddings, which are computed once an image; then Match.score for the best ones, which reads image
and text together and is slower and better.
"""

import sys

import numpy as np

import blip2rt

BEST = 8


def main(text: str, paths: list[str]) -> None:
    model = blip2rt.load()
    features = model.vision_features(paths)  # (B, N, C): keep them, and the encoder runs once an image
    images = model.embed_features(features)  # (B, Q, E): one row of unit length a query
    wanted = model.embed_text(text)  # (E,)
    cosines = (images @ wanted).max(axis=1)  # (B,): the nearest query counts

    best = np.argsort(-cosines)[:BEST]
    matches = model.match_features(features[best], [text] * len(best))
    for i, match in sorted(zip(best, matches, strict=True), key=lambda pair: -pair[1].score):
        print(f"{match.score:6.2f}  cosine {cosines[i]:.3f}  probability {match.probability:.3f}  {paths[i]}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
