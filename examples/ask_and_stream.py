"""Ask about a photograph, at once and word by word: python examples/ask_and_stream.py docs/photo.jpg QUESTION"""

import sys

import blip2rt


def main(path: str, question: str) -> None:
    model = blip2rt.load()
    print(question, model.ask(path, question))

    # The same answer in pieces. The next token is computed when a piece has been taken.
    for piece in model.stream(path, question=question):
        print(piece, end="", flush=True)
    print()

    # A caption in pieces, which ends as soon as the loop is left.
    said = ""
    for piece in model.stream(path):
        said += piece
        if len(said) > 12:
            break
    print(said, "...")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["docs/photo.jpg", "what colour is the cat?"]))
