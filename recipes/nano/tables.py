"""Write the tables of nano's sets: image, caption or answer, question; sorted by image name.

    python recipes/nano/tables.py DATA runs/nano/tables

DATA has the folders coco, web, daquar, flickr8k and pascal. COCO's images with human captions are in coco-human.tsv,
those with statements made from questions in coco-stated.tsv. coco-told.tsv has both, since only images with a caption
can be rewarded by CIDEr; the others are in coco-untold.tsv. Pascal has no dev split: every third photograph is in no
table. A table with an image of a dev split is rejected.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from blip2rt.command_line import Parser, run_script
from blip2rt.errors import Blip2rtError

Row = tuple[str, str, str]


def rows(file: Path) -> Iterator[dict[str, str]]:
    if not file.is_file():
        raise Blip2rtError(f"{file} does not exist: give the folder of coco, web, daquar, flickr8k and pascal")
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


def coco(folder: Path) -> dict[str, list[Row]]:
    """Captions and questions of COCO's images. Statements are left out where an image has human captions."""
    human, statements = captions(folder / "train-human.tsv"), captions(folder / "train.tsv")
    asked = questions(folder / "train-qa.tsv")
    told, stated = ({row[0] for row in rows} for rows in (human, statements))
    stated -= told
    return {
        "coco-human": [row for row in (*human, *asked) if row[0] in told],
        "coco-stated": [row for row in (*statements, *asked) if row[0] in stated],
        "coco-untold": [row for row in asked if row[0] not in told | stated],
    }


def write_tables(data: Path, out: Path, only: str) -> Iterator[str]:
    """Write a table of each kind of COCO's images; unless `only` is coco, also of the other sets. Yield a line each."""
    found = coco(data / "coco")
    found["coco-told"] = found["coco-human"] + found["coco-stated"]
    if only != "coco":
        found |= {name: captions(data / name / "train.tsv") for name in ("web", "flickr8k", "pascal")}
        unseen = set(sorted({row[0] for row in found["pascal"]})[::3])
        found["pascal"] = [row for row in found["pascal"] if row[0] not in unseen]
        answered = questions(data / "daquar" / "train-qa.tsv")
        found["daquar"] = [row for row in answered if "," not in row[1]]  # not lists of things
    found["coco"] = found["coco-told"] + found["coco-untold"]  # the last: build.sh looks for it
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


if __name__ == "__main__":
    parser = Parser(prog="tables.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--only", choices=["coco"], default="", help="write this set's tables only (default: all)")
    run_script(parser, lambda args: write_tables(args.data, args.out, args.only))
