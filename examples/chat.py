"""Talk about one photograph: python examples/chat.py docs/photo.jpg. An empty line ends the conversation.

The conversation keeps the language model's cache, so a question costs only its own tokens. nano was trained on single
questions and ignores earlier ones; a bundle with a larger language model does better: --model my-bundle.
"""

import argparse

import blip2rt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--model", help="a bundle (default: nano)")
    args = parser.parse_args()
    chat = blip2rt.load(args.model).chat(args.image)
    while question := read("you: "):
        print("model: ", end="")
        for piece in chat.stream(question):
            print(piece, end="", flush=True)
        print()


def read(prompt: str) -> str:
    """A line from the terminal or a pipe; empty at its end."""
    try:
        return input(prompt).strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
