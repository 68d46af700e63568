"""Ask about a photograph, in one piece and word by word: python examples/ask_and_stream.py docs/photo.jpg QUESTION"""

import sys

import blip2rt


def main(path: str, question: str) -> None:
    model = blip2rt.load()
    print(question, model.ask(path, question))

    # The same answer in pieces. The next token is computed once a piece was taken.
    for piece in model.stream(path, question=question):
        print(piece, end="", flush=True)
    print()

    # A caption in pieces; leaving the loop ends it.
    text = ""
    for piece in model.stream(path):
        text += piece
        if len(text) > 12:
            break
    print(text, "...")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["docs/photo.jpg", "what colour is the cup?"]))
