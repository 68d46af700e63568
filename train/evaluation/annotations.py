"""Evaluation data in their official formats: images with reference captions, questions with their answers.

Captions: COCO's and NoCaps' JSON, Karpathy's split files (dataset_coco.json, dataset_flickr30k.json), and every list
that train.data.readers reads. Questions: VQAv2's and OK-VQA's pairs of files, GQA's, and lists with questions. Every
function raises Blip2rtError for invalid data.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from blip2rt.errors import Blip2rtError, ImageError
from blip2rt.image import load_rgb

from ..data.readers import read_data, read_json_file
from ..data.samples import BadSamples, TooManyBadSamples, is_file, text_fault

Id = int | str


@dataclass(frozen=True)
class CaptionedImage:
    """An image and its human captions, none if they are not published; `group`: NoCaps' domain."""

    id: Id
    path: Path
    references: list[str]
    group: str = ""


@dataclass(frozen=True)
class VqaQuestion:
    """A question about an image and human answers, none if they are not published; `group`: the answer's type."""

    id: Id
    path: Path
    question: str
    answers: list[str]
    group: str = ""


Item = TypeVar("Item", CaptionedImage, VqaQuestion)


@dataclass(frozen=True)
class VqaQuestions:
    """Questions of one file. `graded`: use VQA accuracy over several annotators, otherwise exact match."""

    items: list[VqaQuestion]
    graded: bool


def read_captions(
    file: Path, images: Path, split: str | None = None, bad: BadSamples | None = None, default: str = "test"
) -> list[CaptionedImage]:
    """Read images with their captions, of one split if the file has several (`default` unless given).

    Unusable entries are counted in `bad` and left out.
    """
    bad = BadSamples(0) if bad is None else bad
    data = read_json_file(file) if file.suffix.lower() == ".json" else None
    listed = data.get("images") if isinstance(data, dict) else None
    if isinstance(listed, list) and _has(listed, "sentences"):
        return _checked(file, _karpathy(file, listed, images, split or default, bad))
    if isinstance(data, dict) and isinstance(listed, list):
        found = _coco(file, data, images, bad)
    elif isinstance(data, dict):
        raise Blip2rtError(
            f"{file}: keys {', '.join(sorted(map(str, data))[:5])}: give COCO's or NoCaps' JSON (images, annotations), "
            "Karpathy's (images with sentences), or a list that training reads"
        )
    else:
        table = read_data(file, images, bad)
        pairs = zip(table.paths, table.by_image(), strict=True)
        found = [
            CaptionedImage(_name(path, file, images), path, [each.text for each in group if not each.prompt])
            for path, group in pairs
        ]
        found = [each for each in found if each.references]  # images with questions only
    if split is not None:
        raise Blip2rtError(f"{file} has no splits: leave out --split {split}")
    return _checked(file, found)


def _coco(file: Path, data: dict[str, Any], images: Path, bad: BadSamples) -> list[CaptionedImage]:
    captions: dict[Id, list[str]] = {}
    for place, annotation in _entries(file, "annotation", data.get("annotations") or ()):
        with _counted(bad, place):
            id = _id(annotation, "image_id")
            captions.setdefault(id, []).append(_text(annotation, "caption"))
    listed: dict[Id, tuple[str, str]] = {}
    for place, image in _entries(file, "image", data["images"]):
        with _counted(bad, place):
            listed[_id(image, "id")] = _text(image, "file_name", "name"), str(image.get("domain") or "")
    unknown = [id for id in captions if id not in listed]
    uncaptioned = [id for id in listed if id not in captions] if captions else []  # a test set has none at all
    for what, ids in (("captions of images that are not listed", unknown), ("images without caption", uncaptioned)):
        if len(ids) > bad.limit - len(bad.found):
            raise TooManyBadSamples(
                f"{file} has {len(ids)} {what}, the first of image_id {ids[0]}: give the file of all"
            )
        for id in ids:
            bad.add(f"{file}, image_id {id}", f"it is one of {len(ids)} {what}")
            listed.pop(id, None)
    return [
        CaptionedImage(id, _image(images, name), captions.get(id, []), domain) for id, (name, domain) in listed.items()
    ]


def _karpathy(
    file: Path, listed: list[dict[str, Any]], images: Path, split: str, bad: BadSamples
) -> list[CaptionedImage]:
    splits = sorted({str(image.get("split")) for image in listed})
    if split not in splits:
        raise Blip2rtError(f"{file} has no split {split!r}: choose {', '.join(splits)}")
    found = []
    for place, image in _entries(file, "image", listed):
        with _counted(bad, place):
            if image.get("split") != split:
                continue
            name = _text(image, "filename", "name")
            texts = []
            for number, sentence in enumerate(image["sentences"], 1):
                with _counted(bad, f"{place}, sentence {number}"):
                    texts.append(_text(sentence, "raw", "caption"))
            if not texts:
                raise ValueError("it has no caption")
            id = image.get("cocoid", image.get("imgid", name))
            found.append(CaptionedImage(id, _image(images, str(Path(image.get("filepath") or "", name))), texts))
    return found


def read_questions(file: Path, annotations: Path | None, images: Path, bad: BadSamples | None = None) -> VqaQuestions:
    """Read questions with their answers. annotations: the separate file of VQAv2 and OK-VQA; None if it is not
    published (test-dev), so that answers can only be submitted. Unusable entries are counted in `bad`.
    """
    bad = BadSamples(0) if bad is None else bad
    data = read_json_file(file) if file.suffix.lower() == ".json" else None
    if isinstance(data, dict) and isinstance(data.get("questions"), list):
        answered = None if annotations is None else _answers(annotations, bad)
        asked = []
        for place, question in _entries(file, "question", data["questions"]):
            with _counted(bad, place):
                asked.append(_question(question, str(data.get("data_subtype", "")), answered, images))
        return VqaQuestions(_checked(file, asked), graded=True)
    if annotations is not None:
        raise Blip2rtError(f"{file} holds its answers itself: leave out --annotations {annotations}")
    if isinstance(data, dict) and _has(list(data.values()), "imageId"):
        return VqaQuestions(_checked(file, _gqa(file, data, images, bad)), graded=False)
    if isinstance(data, dict):
        raise Blip2rtError(
            f"{file}: keys {', '.join(sorted(map(str, data))[:5])}: give VQAv2's questions file, GQA's, or a list with "
            "questions (image, question, answer)"
        )
    listed = read_data(file, images, bad)
    answers: dict[tuple[int, str], list[str]] = {}
    for sample in listed.samples:
        if sample.prompt:
            answers.setdefault((sample.image, sample.prompt), []).append(sample.text)
    asked = [
        VqaQuestion(f"{_name(listed.paths[image], file, images)}: {question}", listed.paths[image], question, texts)
        for (image, question), texts in answers.items()
    ]
    if not asked:
        raise Blip2rtError(f"{file} has no questions: its column 'prompt' or 'question' is empty or not there")
    return VqaQuestions(_checked(file, asked), graded=False)


def _answers(file: Path, bad: BadSamples) -> dict[Any, dict[str, Any]]:
    data = read_json_file(file)
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise Blip2rtError(f"{file} holds no VQA annotations: give the file with the key 'annotations'")
    found = {}
    for place, annotation in _entries(file, "annotation", data["annotations"]):
        with _counted(bad, place):
            found[_id(annotation, "question_id")] = annotation
    return found


def _question(question: Any, subtype: str, answered: dict[Any, dict[str, Any]] | None, images: Path) -> VqaQuestion:
    id, text = _id(question, "question_id"), _text(question, "question", "question")
    path = _vqa_image(images, subtype, question)
    if answered is None:
        return VqaQuestion(id, path, text, [])
    if id not in answered:
        raise Blip2rtError(f"question {id} has no annotation: give the --annotations of the same split")
    answers = [_text(answer, "answer", "answer") for answer in _field(answered[id], "answers")]
    if len(answers) < 2:
        fix = "VQA accuracy needs several annotators; one answer each is GQA's format"
        raise Blip2rtError(f"question {id} has {len(answers)} answers in --annotations: {fix}")
    return VqaQuestion(id, path, text, answers, str(answered[id].get("answer_type") or ""))


def _vqa_image(images: Path, subtype: str, question: dict[str, Any]) -> Path:
    """Find COCO_val2014_000000000042.jpg of image_id 42, flat or in val2014/; a newer name; or the entry's `image`."""
    if "image" in question:
        return _image(images, str(question["image"]))
    number = _field(question, "image_id")
    folder = subtype.replace("test-dev", "test")
    stem = f"{number:012d}" if isinstance(number, int) else str(number)
    names = [f"{folder}/COCO_{folder}_{stem}.jpg", f"{stem}.jpg", f"{number}.jpg"]
    return next((path for path in (_image(images, name) for name in names) if path.is_file()), _image(images, names[0]))


def _gqa(file: Path, data: dict[str, Any], images: Path, bad: BadSamples) -> list[VqaQuestion]:
    found = []
    for id, entry in data.items():
        with _counted(bad, f"{file}, question {id}"):
            image, question = str(_id(entry, "imageId")), _text(entry, "question", "question")
            answers = [_text(entry, "answer", "answer")] if "answer" in entry else []
            group = str((entry.get("types") or {}).get("structural") or "")
            found.append(VqaQuestion(id, _image(images, f"{image}.jpg"), question, answers, group))
    return found


def _entries(file: Path, what: str, entries: Any) -> Iterator[tuple[str, Any]]:
    """Return the entries of a list with their positions."""
    if not isinstance(entries, list | tuple):
        raise Blip2rtError(f"{file} has no list of {what}s: give a whole file")
    return ((f"{file}, {what} {number}", entry) for number, entry in enumerate(entries))


@contextlib.contextmanager
def _counted(bad: BadSamples, place: str) -> Iterator[None]:
    """Count what is wrong with an entry instead of raising it."""
    try:
        yield
    except (Blip2rtError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, TooManyBadSamples):
            raise
        bad.add(place, str(error) or type(error).__name__)


def _id(entry: Any, name: str) -> Id:
    found = _field(entry, name)
    if isinstance(found, bool) or not isinstance(found, int | str):
        raise ValueError(f"its {name} is {str(found)[:40]!r}, not a number or a name")
    return found


def _text(entry: Any, name: str, what: str = "caption") -> str:
    found = _field(entry, name)
    fault = text_fault(found, what)
    if fault is not None:
        raise ValueError(fault)
    return str(found)


def _field(entry: Any, name: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"it lacks {name!r}: {json.dumps(entry)[:100]}")
    return entry[name]


def _has(entries: Sequence[Any], name: str) -> bool:
    return bool(entries) and all(isinstance(entry, dict) and name in entry for entry in entries)


def _name(path: Path, file: Path, images: Path) -> str:
    """Return an image's name in its list; `file` is a folder if the images are beside their texts."""
    return str(path.relative_to(file if file.is_dir() else images))


def _image(images: Path, name: str) -> Path:
    """Return a file in `images`, with or without the folders in its name."""
    path = images / name
    flat = images / Path(name).name
    return flat if not path.is_file() and flat.is_file() else path


def _checked(file: Path, found: list[Any]) -> list[Any]:
    """Return `found` if it is not empty and its ids are unique."""
    if not found:
        raise Blip2rtError(f"{file} has nothing to evaluate: give another file")
    duplicates = [id for id, count in Counter(each.id for each in found).items() if count > 1]
    if duplicates:
        raise Blip2rtError(f"{file} has the id {duplicates[0]} twice: remove one")
    return found


def in_half(name: str, half: str | None) -> bool:
    """Whether the image of this file name is in a half of its set: "tune" or "report"; None: the whole set."""
    return half is None or half == ("tune", "report")[hashlib.sha256(name.encode()).digest()[0] % 2]


def drop_unreadable_images(file: Path, items: list[Item], bad: BadSamples) -> list[Item]:
    """Return the items whose image can be read; others are counted in `bad`. Raise Blip2rtError if none can be."""
    faults: dict[Path, str] = {}
    for path in dict.fromkeys(item.path for item in items):
        try:
            load_rgb(path)
        except ImageError as error:
            faults[path] = str(error)
    missing = [path for path in faults if not is_file(path)]
    if len(missing) > bad.limit:
        raise Blip2rtError(
            f"{len(missing)} images of {file} are missing, the first {missing[0]}: --images names their folder"
        )
    for path, fault in faults.items():
        bad.add(str(path), fault)
    found = [item for item in items if item.path not in faults]
    if not found:
        raise Blip2rtError(f"no image of {file} can be read: --images names their folder")
    return found
