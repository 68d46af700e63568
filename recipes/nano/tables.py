"""Write the tables of nano's four sets: image, caption or answer, question; sorted by image name.

    python recipes/nano/tables.py DATA runs/nano/tables

DATA has the folders coco, web, daquar and flickr8k. coco-told.tsv has the images with a caption, since only these can
be rewarded by CIDEr; the others are in coco-untold.tsv. A table with an image of a dev split is rejected.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from blip2rt.command_line import Parser, run
from blip2rt.errors import Blip2rtError

Row = tuple[str, str, str]


def rows(file: Path) -> Iterator[dict[str, str]]:
    if not file.is_file():
        raise Blip2rtError(f"{file} does not exist: give the folder of coco, web, daquar and flickr8k")
    with file.open(newline="", encoding="utf-8") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def captions(file: Path) -> list[Row]:
    return [(row["image"], row["caption"], "") for row in rows(file)]


def questions(file: Path) -> list[Row]:
    answered = ((row["image"], row["answer"].strip().lower(), row["question"].strip().lower()) for row in rows(file))
    return [(image, answer.replace("_", " "), question) for image, answer, question in answered]


def write(file: Path, table: list[Row]) -> None:
    lines = ["image\tcaption\tprompt", *("\t".join(row) for row in table)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tables(data: Path, out: Path) -> Iterator[str]:
    """Write coco.tsv, coco-told.tsv, coco-untold.tsv, web.tsv, daquar.tsv and flickr8k.tsv; yield a line about each."""
    found = {name: captions(data / name / "train.tsv") for name in ("coco", "web", "flickr8k")}
    found["coco"] += questions(data / "coco" / "train-qa.tsv")
    captioned = {row[0] for row in captions(data / "coco" / "train.tsv")}
    found["coco-told"] = [row for row in found["coco"] if row[0] in captioned]
    found["coco-untold"] = [row for row in found["coco"] if row[0] not in captioned]
    answered = questions(data / "daquar" / "train-qa.tsv")
    found["daquar"] = [row for row in answered if "," not in row[1]]  # not lists of things
    out.mkdir(parents=True, exist_ok=True)
    write(out / "coco-dev-qa.tsv", questions(data / "coco" / "dev-qa.tsv"))  # for evaluation
    for name, table in found.items():
        folder = data / name.partition("-")[0]
        held_out = {row["image"] for file in sorted(folder.glob("dev*.tsv")) for row in rows(file)}
        if leaked := sorted(held_out & {row[0] for row in table}):
            raise Blip2rtError(f"{name} has {len(leaked)} images of its dev split, as {leaked[0]}: remove them")
        table.sort(key=lambda row: row[0])
        write(out / f"{name}.tsv", table)
        answered = sum(bool(row[2]) for row in table)
        yield f"{name}: {len({row[0] for row in table})} images, {len(table) - answered} captions, {answered} questions"


def main() -> int:
    parser = Parser(prog="tables.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("out", type=Path, help="folder to write")

    def work() -> None:
        args = parser.parse_args()
        for line in write_tables(args.data, args.out):
            print(line)

    return run("tables.py", work, extra="train")


if __name__ == "__main__":
    raise SystemExit(main())
