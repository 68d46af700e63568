"""Caption what a camera sees: python examples/webcam.py [--source CAMERA, VIDEO, or FOLDER/%d.jpg]

Needs OpenCV: pip install opencv-python-headless. Every caption is of the newest frame; frames between are left out.
"""

import argparse
import time

import cv2

import blip2rt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="0", help="number of a camera, video file, or numbered images (default: 0)")
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one caption to the next (default: 1)")
    args = parser.parse_args()
    model = blip2rt.load()
    source = cv2.VideoCapture(int(args.source) if args.source.isdecimal() else args.source)
    if not source.isOpened():
        raise SystemExit(f"cannot open {args.source}: give --source the number of a camera, or a video file")
    captioned = -args.every
    started = time.monotonic()
    while source.grab():  # a frame is decoded only when it is captioned
        seconds = time.monotonic() - started
        if seconds - captioned >= args.every:
            captioned = seconds
            _, frame = source.retrieve()  # (H, W, 3) uint8, blue first
            print(f"{seconds:6.1f} s  {model.caption(frame[:, :, ::-1], num_beams=1)}", flush=True)
    source.release()


if __name__ == "__main__":
    main()
