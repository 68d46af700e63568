"""Evaluation data in their official formats: images with reference captions, questions with their answers.

Captions: COCO's and NoCaps' JSON, Karpathy's split files (dataset_coco.json, dataset_flickr30k.json), and every list
that train.data.readers knows, Flickr's tables among them. Questions: VQAv2's and OK-VQA's pairs of files, GQA's, and
lists
with questions. Knows files and fields, nothing about models. Every function raises Blip2rtError for what is wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip2rt.errors import Blip2rtError

from ..data.readers import read_data

Id = int | str


@dataclass(frozen=True)
class Captioned:
    """An image and what people said of it, nothing where that is not published; `group`: NoCaps' domain."""

    id: Id
    path: Path
    references: list[str]
    group: str = ""


@dataclass(frozen=True)
class Asked:
    """A question about an image and people's answers, none where they are not published; `group`: the answer's type."""

    id: Id
    path: Path
    question: str
    answers: list[str]
    group: str = ""


@dataclass(frozen=True)
class Questions:
    """`graded`: VQA accuracy over several annotators; else exact match."""

    asked: list[Asked]
    graded: bool


def read_captions(file: Path, images: Path, split: str | None = None) -> list[Captioned]:
    """Images with their captions, of one split where the file has several ("test", if nothing is said)."""
    data = _json(file) if file.suffix.lower() == ".json" else None
    listed = data.get("images") if isinstance(data, dict) else None
    if isinstance(listed, list) and _has(listed, "sentences"):
        return _checked(file, _karpathy(file, listed, images, split or "test"))
    if isinstance(data, dict) and isinstance(listed, list):
        found = _coco(file, data, images)
    elif isinstance(data, dict):
        raise Blip2rtError(
            f"{file}: keys {', '.join(sorted(map(str, data))[:5])}: give COCO's or NoCaps' JSON (images, annotations), "
            "Karpathy's (images with sentences), or a list that training reads"
        )
    else:
        table = read_data(file, images)
        pairs = zip(table.paths, table.by_image(), strict=True)
        found = [
            Captioned(_name(path, file, images), path, [each.text for each in group if not each.prompt])
            for path, group in pairs
        ]
        found = [each for each in found if each.references]  # images with questions only
    if split is not None:
        raise Blip2rtError(f"{file} has no splits: leave out --split {split}")
    return _checked(file, found)


def _coco(file: Path, data: dict[str, Any], images: Path) -> list[Captioned]:
    captions: dict[Any, list[str]] = {}
    for annotation in data.get("annotations") or ():
        captions.setdefault(_field(file, annotation, "image_id"), []).append(str(_field(file, annotation, "caption")))
    listed = {_field(file, image, "id"): image for image in data["images"]}
    unknown = [image for image in captions if image not in listed]
    bare = [image for image in listed if image not in captions] if captions else []  # a test set has none at all
    if unknown or bare:
        what, ids = ("captions of images that are not listed", unknown) if unknown else ("images without caption", bare)
        raise Blip2rtError(f"{file} has {len(ids)} {what}, the first of image_id {ids[0]}")
    return [
        Captioned(
            id,
            _image(images, str(_field(file, image, "file_name"))),
            captions.get(id, []),
            str(image.get("domain") or ""),
        )
        for id, image in listed.items()
    ]


def _karpathy(file: Path, listed: list[dict[str, Any]], images: Path, split: str) -> list[Captioned]:
    splits = sorted({str(image.get("split")) for image in listed})
    if split not in splits:
        raise Blip2rtError(f"{file} has no split {split!r}: choose {', '.join(splits)}")
    return [
        Captioned(
            image.get("cocoid", image.get("imgid", image["filename"])),
            _image(images, str(Path(image.get("filepath", ""), image["filename"]))),
            [str(_field(file, sentence, "raw")) for sentence in image["sentences"]],
        )
        for image in listed
        if image.get("split") == split
    ]


def read_questions(file: Path, annotations: Path | None, images: Path) -> Questions:
    """Questions with their answers. annotations: of VQAv2's and OK-VQA's, which are files of their own; None where they
    are not published (test-dev), so that answers can only be handed in."""
    data = _json(file) if file.suffix.lower() == ".json" else None
    if isinstance(data, dict) and isinstance(data.get("questions"), list):
        answered = None if annotations is None else _answers(annotations)
        asked = [_asked(file, data, question, answered, annotations, images) for question in data["questions"]]
        return Questions(_checked(file, asked), graded=True)
    if annotations is not None:
        raise Blip2rtError(f"{file} holds its answers itself: leave out --annotations {annotations}")
    if isinstance(data, dict) and _has(list(data.values()), "imageId"):
        return Questions(_checked(file, _gqa(file, data, images)), graded=False)
    if isinstance(data, dict):
        raise Blip2rtError(
            f"{file}: keys {', '.join(sorted(map(str, data))[:5])}: give VQAv2's questions file, GQA's, or a list with "
            "questions (image, question, answer)"
        )
    listed = read_data(file, images)
    answers: dict[tuple[int, str], list[str]] = {}
    for sample in listed.samples:
        if sample.prompt:
            answers.setdefault((sample.image, sample.prompt), []).append(sample.text)
    asked = [
        Asked(f"{_name(listed.paths[image], file, images)}: {question}", listed.paths[image], question, texts)
        for (image, question), texts in answers.items()
    ]
    if not asked:
        raise Blip2rtError(f"{file} has no questions: its column 'prompt' or 'question' is empty or not there")
    return Questions(_checked(file, asked), graded=False)


def _answers(file: Path) -> dict[Any, dict[str, Any]]:
    data = _json(file)
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise Blip2rtError(f"{file} holds no VQA annotations: give the file with the key 'annotations'")
    return {_field(file, annotation, "question_id"): annotation for annotation in data["annotations"]}


def _asked(
    file: Path,
    data: dict[str, Any],
    question: Any,
    answered: dict[Any, dict[str, Any]] | None,
    annotations: Path | None,
    images: Path,
) -> Asked:
    id, text = _field(file, question, "question_id"), str(_field(file, question, "question"))
    path = _vqa_image(images, str(data.get("data_subtype", "")), question, file)
    if answered is None:
        return Asked(id, path, text, [])
    if id not in answered:
        raise Blip2rtError(
            f"question {id} of {file} has no annotation in {annotations}: give the file of the same split"
        )
    assert annotations is not None
    given = [str(_field(annotations, answer, "answer")) for answer in _field(annotations, answered[id], "answers")]
    if len(given) < 2:
        raise Blip2rtError(
            f"question {id} has {len(given)} answers in {annotations}: VQA accuracy compares several annotators; "
            "one answer each is GQA's format"
        )
    return Asked(id, path, text, given, str(answered[id].get("answer_type") or ""))


def _vqa_image(images: Path, subtype: str, question: dict[str, Any], file: Path) -> Path:
    """COCO_val2014_000000000042.jpg of image_id 42, flat or in val2014/; newer names; or the `image` that it names."""
    if "image" in question:
        return _image(images, str(question["image"]))
    number = _field(file, question, "image_id")
    folder = subtype.replace("test-dev", "test")
    stem = f"{number:012d}" if isinstance(number, int) else str(number)
    names = [f"{folder}/COCO_{folder}_{stem}.jpg", f"{stem}.jpg", f"{number}.jpg"]
    return next((path for path in (_image(images, name) for name in names) if path.is_file()), _image(images, names[0]))


def _gqa(file: Path, data: dict[str, Any], images: Path) -> list[Asked]:
    return [
        Asked(
            id,
            _image(images, f"{_field(file, entry, 'imageId')}.jpg"),
            str(_field(file, entry, "question")),
            [str(entry["answer"])] if "answer" in entry else [],
            str((entry.get("types") or {}).get("structural") or ""),
        )
        for id, entry in data.items()
    ]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Blip2rtError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Blip2rtError(f"{file} is no JSON: {error}") from error


def _field(file: Path, entry: Any, name: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise Blip2rtError(f"{file}: an entry lacks {name!r}: {json.dumps(entry)[:100]}")
    return entry[name]


def _has(entries: Sequence[Any], name: str) -> bool:
    return bool(entries) and all(isinstance(entry, dict) and name in entry for entry in entries)


def _name(path: Path, file: Path, images: Path) -> str:
    """An image as its list names it; `file` is a folder where the images lie beside their texts."""
    return str(path.relative_to(file if file.is_dir() else images))


def _image(images: Path, name: str) -> Path:
    """A file below `images`, with the folders that its name has or without."""
    path = images / name
    flat = images / Path(name).name
    return flat if not path.is_file() and flat.is_file() else path


def _checked(file: Path, found: list[Any]) -> list[Any]:
    """`found`, which is not empty, and whose ids are unique."""
    if not found:
        raise Blip2rtError(f"{file} holds nothing to evaluate")
    twice = [id for id, count in Counter(each.id for each in found).items() if count > 1]
    if twice:
        raise Blip2rtError(f"{file} has the id {twice[0]} twice")
    return found


def require_images(file: Path, paths: Iterable[Path]) -> None:
    """Raise Blip2rtError where one of them is not there."""
    missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        raise Blip2rtError(
            f"{len(missing)} images of {file} are missing, the first {missing[0]}: --images names their folder"
        )
