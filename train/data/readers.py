"""Lists of images and texts: TSV and CSV tables, JSON lines, COCO's JSON, folders with .txt files.

`read_data(path, images)` returns a Dataset; unusable rows are counted in BadSamples and left out. Pixels are not read.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from blip2rt.bundle.regular_files import read_bounded
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.sources import parse_json
from blip2rt.untrusted.image_format import EXTENSIONS

from .samples import BadSamples, Dataset, Row, dataset_of, is_file

IMAGES = frozenset(EXTENSIONS)
_MAX_COUNT = 10_000  # of one answer
_MAX_TEXT_BYTES = 16 << 20  # of photo.txt

_NAMES = {
    "image": ("image", "file_name", "filename", "image_path", "filepath", "path"),
    "text": ("caption", "text", "answer"),
    "prompt": ("prompt", "question"),
}


def read_data(path: str | Path, images: str | Path = "", bad: BadSamples | None = None) -> Dataset:
    """Read a list of any format, chosen by its extension; a folder is read as images with a .txt file beside each.

    Image names are relative to the folder `images`, which a folder of images does not need. Raise Blip2rtError if
    nothing usable is left, or more is wrong than `bad` allows.
    """
    path = Path(path)
    bad = BadSamples(0) if bad is None else bad
    if path.is_dir():
        rows, images = _folder(path, bad), path
    elif not is_file(path) and not path.exists():
        raise Blip2rtError(f"data {str(path)!r} does not exist: give another path")
    elif path.suffix.lower() in _READERS:
        rows = _READERS[path.suffix.lower()](path, bad)
    else:
        raise Blip2rtError(
            f"data {str(path)!r}: choose a .tsv, .csv, .jsonl or COCO .json file, a folder of images with .txt "
            "files, or shards (.tar, in train_data)"
        )
    try:
        return dataset_of(path, rows, Path(images), bad)
    except OSError as error:
        raise Blip2rtError(f"data {str(path)!r} cannot be read ({error.strerror}): give another path") from error


def _open(path: Path) -> TextIO:
    """Open a text file; invalid UTF-8 becomes surrogates, which dataset_of reports by row."""
    return path.open(newline="", encoding="utf-8-sig", errors="surrogateescape")


def read_json_file(path: Path) -> Any:
    """Read a JSON file. Raise Blip2rtError."""
    try:
        with _open(path) as file:
            return parse_json(file.read())
    except OSError as error:
        raise Blip2rtError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Blip2rtError(f"{path} is not JSON ({error}): name it .jsonl if every line is an object") from error


def _folder(path: Path, bad: BadSamples) -> Iterator[Row]:
    """Yield the lines of photo.txt beside each photo.jpg, at any depth."""
    for image in sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES and not p.is_dir()):
        texts, name = image.with_suffix(".txt"), str(image.relative_to(path))
        if not is_file(texts):
            bad.add(str(image), f"there is no {texts.name}")
            continue
        try:
            lines = read_bounded(texts, _MAX_TEXT_BYTES).decode("utf-8-sig", "surrogateescape").splitlines()
        except OSError as error:
            bad.add(str(texts), str(error.strerror or error))
            continue
        if not any(line.strip() for line in lines):
            bad.add(str(texts), "it has no caption")
        yield from (Row(f"{texts}, line {i}", name, line.strip()) for i, line in enumerate(lines, 1) if line.strip())


def _table(path: Path, bad: BadSamples) -> Iterator[Row]:
    """Read a table with a header: a TSV without quotes, or a CSV."""
    with _open(path) as file:
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        quoting: Any = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
        reader = csv.DictReader(file, delimiter=separator, quoting=quoting, skipinitialspace=separator != "\t")
        try:
            columns = {kind: _column(path, kind, reader.fieldnames or ()) for kind in _NAMES}
        except csv.Error as error:
            raise Blip2rtError(f"{path} is not a table ({error}): give a file with a header") from error
        for place, row in table_rows(path, reader, bad):
            if None in row:
                bad.add(place, "it has more columns than the header: quote commas in a .csv, and leave out tabs")
            else:
                yield Row(place, *(row.get(columns[kind] or "") or "" for kind in _NAMES))


def table_rows(path: Path, reader: Any, bad: BadSamples) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a reader of the module csv with their positions; malformed rows are counted in `bad`."""
    while True:
        try:
            if (row := next(reader, None)) is None:
                return
        except csv.Error as error:  # a field that is too long
            bad.add(f"{path}, line {reader.line_num}", str(error))
            continue
        yield f"{path}, line {reader.line_num}", row


def _column(path: Path, kind: str, have: Any) -> str | None:
    found = next((name for name in _NAMES[kind] if name in have), None)
    if found is None and kind != "prompt":
        shown = ascii(list(have))[:200]
        raise Blip2rtError(f"{path} needs a column for the {kind}: {' or '.join(_NAMES[kind])}; it has {shown}")
    return found


def _json_lines(path: Path, bad: BadSamples) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                yield from _of_object(place, parse_json(line))
            except ValueError as error:
                bad.add(place, f"it is not a JSON object with an image and a caption: {error}")


def _of_object(place: str, row: Any) -> list[Row]:
    """Return the texts of an object: one, a list with possibly repeated answers, or answers with counts.

    Raise ValueError if it has no image or no text.
    """
    if not isinstance(row, dict):
        raise ValueError(f"it is {type(row).__name__}")
    image = next((name for name in _NAMES["image"] if name in row), None)
    prompt = next((row[name] for name in _NAMES["prompt"] if name in row), "")
    names = (*_NAMES["text"], "captions", "answers")
    if prompt:  # the answer is the text, even if there is a caption too
        names = ("answer", "answers", *names)
    text = next((name for name in names if name in row), None)
    if image is None or text is None:
        raise ValueError(f"it has no {'image' if image is None else 'caption'}")
    value = row[text]
    texts = value if isinstance(value, list) else _counted(value) if isinstance(value, dict) else [value]
    if not texts:
        raise ValueError("it has no caption")
    return [
        Row(f"{place}, text {number}" if len(texts) > 1 else place, row[image], _inner(each), prompt)
        for number, each in enumerate(texts, 1)
    ]


def _counted(counts: dict[str, Any]) -> list[str]:
    """Repeat each answer of {answer: count}. Raise ValueError for an invalid count."""
    for text, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MAX_COUNT:
            raise ValueError(f"{text[:40]!r} was given {str(count)[:40]!r} times: give a number up to {_MAX_COUNT:,}")
    return [text for text, count in counts.items() for _ in range(count)]


def _inner(text: Any) -> Any:
    """Return the text of an entry that is itself an object."""
    names = ("answer", "caption", "text", "raw")
    return next((text[name] for name in names if name in text), None) if isinstance(text, dict) else text


def _coco(path: Path, bad: BadSamples) -> Iterator[Row]:
    """Read COCO's `{"images": [...], "annotations": [...]}`, the annotations of VQAv2 and OK-VQA with the questions
    file in the same folder, or a list of objects with an image and captions, or with a question and answers.
    """
    data = read_json_file(path)
    if isinstance(data, list):
        for number, row in enumerate(data):
            try:
                yield from _of_object(f"{path}, entry {number}", row)
            except ValueError as error:
                bad.add(f"{path}, entry {number}", f"it has no image and caption: {error}")
        return
    if isinstance(data, dict) and "images" not in data and "data_subtype" in data and "annotations" in data:
        yield from _vqa(path, data, bad)
        return
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise Blip2rtError(f"{path} is not in COCO's format: it needs the lists images and annotations")
    names: dict[str, Any] = {}  # by ids as JSON text
    for number, image in enumerate(data["images"]):
        if not isinstance(image, dict) or "id" not in image or "file_name" not in image:
            bad.add(f"{path}, image {number}", "it has no id or no file_name")
        else:
            names[json.dumps(image["id"])] = image["file_name"]
    for number, annotation in enumerate(data["annotations"]):
        entry = annotation if isinstance(annotation, dict) else {}
        place = f"{path}, annotation {entry.get('id', f'number {number}')}"
        name = names.get(json.dumps(entry.get("image_id")))
        if name is None or "caption" not in entry:
            bad.add(place, "it has no caption, or its image is not listed")
        else:
            yield Row(place, name, entry["caption"])


def _vqa(path: Path, data: dict[str, Any], bad: BadSamples) -> Iterator[Row]:
    """Read annotations of VQAv2 or OK-VQA, whose questions are in the same folder under their official name."""
    other = path.with_name(path.name.replace("mscoco", "OpenEnded_mscoco").replace("annotations", "questions"))
    if other == path or not other.is_file():
        raise Blip2rtError(f"{path} has answers: put their questions in the same folder, as {other.name}")
    other_data, subset = read_json_file(other), data["data_subtype"]  # train2014
    questions, annotations = (
        (other_data.get("questions") if isinstance(other_data, dict) else None),
        data["annotations"],
    )
    if not isinstance(questions, list) or not isinstance(annotations, list) or not isinstance(subset, str):
        raise Blip2rtError(f"{path} or {other.name} is not in the format of VQAv2: it needs annotations and questions")
    questions_by_id = {
        json.dumps(each["question_id"]): each.get("question")
        for each in questions
        if isinstance(each, dict) and "question_id" in each
    }
    for number, annotation in enumerate(annotations):
        entry = annotation if isinstance(annotation, dict) else {}
        place = f"{path}, question {entry.get('question_id', f'number {number}')}"
        question = questions_by_id.get(json.dumps(entry.get("question_id")))
        image, answers = entry.get("image_id"), entry.get("answers")
        if question is None:
            bad.add(place, f"it is not in {other.name}")
        elif isinstance(image, bool) or not isinstance(image, int) or not isinstance(answers, list) or not answers:
            bad.add(place, "it has no image_id or no list of answers")
        else:
            name = (
                f"COCO_{subset}_{image:012d}.jpg"  # with or without the folder, or the name that COCO uses since 2017
            )
            others = (name, f"{image:012d}.jpg", f"{image}.jpg")
            for i, answer in enumerate(answers, 1):
                yield Row(f"{place}, answer {i}", f"{subset}/{name}", _inner(answer), question, other_names=others)


_READERS: dict[str, Callable[[Path, BadSamples], Iterator[Row]]] = {".jsonl": _json_lines, ".json": _coco}
_READERS |= dict.fromkeys((".tsv", ".csv"), _table)
