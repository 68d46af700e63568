"""Lists of images and texts: TSV and CSV tables, JSON lines, COCO's JSON, Flickr's tables, folders with a .txt beside
every image.

`read_data(path, images)` gives a Dataset; what is wrong with rows is counted in Bad and left out. Knows files and
fields, nothing about pixels or models.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blip2rt.errors import Blip2rtError

from .samples import Bad, Dataset, Sample, count_answers, read_table

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
Row = tuple[str, str, str]  # image, text, prompt

_NAMES = {
    "image": ("image", "file_name", "filename", "image_path", "image_name", "filepath", "path"),
    "text": ("caption", "text", "comment", "answer"),
    "prompt": ("prompt", "question"),
}


def read_data(path: str | Path, images: str | Path = "", bad: Bad | None = None) -> Dataset:
    """Read a list of any format by its ending; a folder is read as images with texts beside them.

    Image names are relative to the folder `images`, which a folder of images does not need. Raise Blip2rtError where
    nothing usable is left, or more is wrong than `bad` allows.
    """
    path = Path(path)
    bad = Bad(0) if bad is None else bad
    if path.suffix.lower() == ".tsv":
        return read_table(path, images, bad)
    if path.is_dir():
        rows, images = _folder(path, bad), path
    elif path.suffix.lower() in _READERS:
        if not path.is_file():
            raise Blip2rtError(f"data {str(path)!r} does not exist: give another path")
        rows = _READERS[path.suffix.lower()](path, bad)
    else:
        raise Blip2rtError(
            f"data {str(path)!r}: choose a .tsv, .csv, .jsonl or COCO .json file, Flickr's .token file, a folder of "
            "images with .txt files, or shards (.tar, in train_data)"
        )
    return _dataset(path, list(rows), Path(images), bad)


def _dataset(path: Path, rows: list[Row], images: Path, bad: Bad) -> Dataset:
    index: dict[str, int] = {}
    missing: set[str] = set()
    samples = []
    for name, text, prompt in rows:
        if name in missing:
            continue
        if name not in index and not (images / name).is_file():
            missing.add(name)
            bad.add(f"{images / name}", f"{path} names it, and it does not exist")
        elif not text.strip():
            bad.add(f"{path}: {name}", "its caption is empty")
        else:
            samples.append(Sample(index.setdefault(name, len(index)), text, prompt))
    if not samples:
        reason = f"of {len(rows)} rows none has both a caption and an image in {images}" if rows else "it has no rows"
        raise Blip2rtError(f"data {str(path)!r} cannot be used: {reason}")
    return Dataset([images / name for name in index], count_answers(samples))


def _folder(path: Path, bad: Bad) -> Iterator[Row]:
    """photo.jpg and photo.txt, one caption a line, in any depth."""
    for image in sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES):
        texts = image.with_suffix(".txt")
        if not texts.is_file():
            bad.add(str(image), f"there is no {texts.name} beside it")
            continue
        for line in texts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip():
                yield str(image.relative_to(path)), line.strip(), ""


def _csv(path: Path, bad: Bad) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        flickr = "|" in file.readline()  # Flickr30k's results.csv
        file.seek(0)
        reader = csv.DictReader(file, delimiter="|" if flickr else ",", skipinitialspace=True)
        columns = {kind: _column(path, kind, reader.fieldnames or ()) for kind in _NAMES}
        for row in reader:
            image, text, prompt = (row.get(columns[kind] or "") or "" for kind in _NAMES)
            yield image, text, prompt


def _tokens(path: Path, bad: Bad) -> Iterator[Row]:
    """Flickr8k's and Flickr30k's `name.jpg#0<TAB>caption`."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, tab, text = line.partition("\t")
        if tab and "#" in name:
            yield name.rpartition("#")[0], text, ""
        elif line.strip():
            bad.add(f"{path}, line {number}", "it is not image#number<TAB>caption")


def _column(path: Path, kind: str, have: Any) -> str | None:
    found = next((name for name in _NAMES[kind] if name in have), None)
    if found is None and kind != "prompt":
        raise Blip2rtError(f"{path} needs a column for the {kind}: {' or '.join(_NAMES[kind])}; it has {list(have)}")
    return found


def _json_lines(path: Path, bad: Bad) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows = list(_of_object(row))
            except (ValueError, TypeError, StopIteration):
                bad.add(f"{path}, line {number}", "it is no JSON object with an image and a caption")
                continue
            yield from rows


def _of_object(row: Any) -> Iterator[Row]:
    """The texts of an object: one, a list in which answers may be repeated, or answers with their counts."""
    image = next(row[name] for name in _NAMES["image"] if name in row)
    texts = next(row[name] for name in (*_NAMES["text"], "captions", "answers") if name in row)
    prompt = next((row[name] for name in _NAMES["prompt"] if name in row), "")
    if isinstance(texts, dict):
        texts = [text for text, count in texts.items() for _ in range(int(count))]
    for text in texts if isinstance(texts, list) else [texts]:
        yield str(image), str(text["answer"] if isinstance(text, dict) else text), str(prompt)


def _coco(path: Path, bad: Bad) -> Iterator[Row]:
    """COCO's `{"images": [...], "annotations": [...]}`, VQAv2's annotations with its questions beside them, or a list
    of objects with an image and captions, or with a question and answers."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Blip2rtError(f"{path} is no JSON ({error}): name it .jsonl if every line is an object") from error
    if isinstance(data, list):
        for number, row in enumerate(data):
            try:
                rows = list(_of_object(row))
            except (TypeError, StopIteration):
                bad.add(f"{path}, entry {number}", "it has no image and caption")
                continue
            yield from rows
        return
    if isinstance(data, dict) and "images" not in data and "data_subtype" in data and "annotations" in data:
        yield from _vqa(path, data, bad)
        return
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise Blip2rtError(f"{path} is not in COCO's format: it needs the keys images and annotations")
    names = {image["id"]: image["file_name"] for image in data["images"]}
    for annotation in data["annotations"]:
        name, text = names.get(annotation.get("image_id")), annotation.get("caption")
        if name is None or text is None:
            bad.add(f"{path}, annotation {annotation.get('id')}", "it has no caption, or its image is not listed")
        else:
            yield str(name), str(text), ""


def _vqa(path: Path, data: dict[str, Any], bad: Bad) -> Iterator[Row]:
    """VQAv2's annotations, whose questions are a file of the same folder with VQAv2's name."""
    other = path.with_name(path.name.replace("v2_mscoco", "v2_OpenEnded_mscoco").replace("annotations", "questions"))
    if other == path or not other.is_file():
        raise Blip2rtError(f"{path} holds answers: put their questions beside it, as {other.name}")
    asked = {q["question_id"]: q["question"] for q in json.loads(other.read_text(encoding="utf-8"))["questions"]}
    subset = data["data_subtype"]  # train2014
    for annotation in data["annotations"]:
        question = asked.get(annotation["question_id"])
        if question is None:
            bad.add(f"{path}, question {annotation['question_id']}", f"it is not in {other.name}")
            continue
        image = f"{subset}/COCO_{subset}_{annotation['image_id']:012d}.jpg"
        for answer in annotation["answers"]:
            yield image, str(answer["answer"]), str(question)


_READERS: dict[str, Callable[[Path, Bad], Iterator[Row]]] = {
    ".csv": _csv, ".jsonl": _json_lines, ".json": _coco, ".token": _tokens, ".txt": _tokens,
}  # fmt: skip
