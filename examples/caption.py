"""Caption photographs with the embedded model: python examples/caption.py docs/photo.jpg [more ...]"""

import sys

import blip2rt


def main(paths: list[str]) -> None:
    model = blip2rt.load()  # nano; or blip2rt.load("my-bundle", threads=2)
    for path, caption in zip(paths, model.caption_each(paths), strict=True):
        print(f"{path}: {caption}")

    # The options are those of Hugging Face's generate: help(blip2rt.Options) lists them.
    print("the three best of five beams, with their scores:")
    for text in model.caption(paths[0], num_beams=5, num_captions=3):
        print(f"  {text.score:6.2f}  {text}")

    print("three random samples, the same for the same seed:")
    for text in model.caption(paths[0], do_sample=True, top_p=0.9, num_captions=3, seed=1):
        print(f"          {text}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["docs/photo.jpg"])
