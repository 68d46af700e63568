"""Random photographs in the official formats of captions and questions, and faulty versions of such files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny.blip2 import photographs
from tests.tiny.training import WORDS

IMAGES = 7


def official_formats(folder: Path, seed: int) -> Path:
    """Photographs 1.jpg to 7.jpg in images/, and the same data in the official formats."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(seed)
    words = WORDS
    captions = {i: [" ".join(rng.choice(words, 5)) for _ in range(1 + i % 3)] for i in range(1, IMAGES + 1)}
    for i, photo in enumerate(photographs(IMAGES, rng), 1):
        photo.save(folder / "images" / f"{i}.jpg")
    coco = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "domain": f"{'in near out'.split()[i % 3]}-domain"} for i in captions
        ],
        "annotations": [{"image_id": i, "id": i, "caption": text} for i, texts in captions.items() for text in texts],
    }
    write(folder / "nocaps.json", coco)
    karpathy: list[dict[str, Any]] = [
        {"filepath": "val", "filename": f"{i}.jpg", "cocoid": i, "sentences": [{"raw": text} for text in texts]}
        for i, texts in captions.items()
    ]
    for image in karpathy:
        image["split"] = ("test", "val")[image["cocoid"] == 3]
    write(folder / "karpathy.json", {"images": karpathy, "dataset": "coco"})
    table = [f"{i}.jpg\t{text}\n" for i, texts in captions.items() for text in texts]
    (folder / "table.tsv").write_text("image\tcaption\n" + "".join(table))
    asked = [(10 * i + n, i, f"what is {words[n]}?") for i in captions for n in range(2)]
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text in asked]
    write(folder / "questions.json", {"questions": questions, "data_subtype": "val2014", "task_type": "Open-Ended"})
    annotations = [
        {
            "question_id": q,
            "image_id": i,
            "answer_type": ("other", "yes/no")[q % 2],
            "question_type": "what",
            "answers": [{"answer_id": n, "answer": str(rng.choice(words))} for n in range(10)],
        }
        for q, i, _ in asked
    ]
    write(folder / "annotations.json", {"annotations": annotations})
    gqa = {
        f"q{q}": {"imageId": str(i), "question": text, "answer": "dog", "types": {"structural": "query"}}
        for q, i, text in asked
    }
    write(folder / "gqa.json", gqa)
    return folder


def write(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data))


def faulty(folder: Path, data: Path) -> dict[str, tuple[list[Any], str]]:
    """Name -> a command, and what its one line says."""
    annotations = json.loads((data / "annotations.json").read_text())
    write(folder / "strange.json", {"pictures": []})
    write(folder / "few.json", {"annotations": annotations["annotations"][1:]})
    write(
        folder / "one.json",
        {"annotations": [{**each, "answers": each["answers"][:1]} for each in annotations["annotations"]]},
    )
    (folder / "broken.json").write_text("{")
    (folder / "notes.md").write_text("a dog")
    questions = ["vqa", "--data", data / "questions.json", "--images", data / "images"]
    table = ["--data", data / "table.tsv"]
    return {
        "another format": (["caption", "--data", folder / "strange.json"], "keys pictures: give COCO's"),
        "no JSON": (["caption", "--data", folder / "broken.json"], "is not JSON"),
        "no list": (["caption", "--data", folder / "notes.md"], "choose a .tsv"),
        "no split": (["caption", "--data", data / "karpathy.json", "--split", "dev"], "choose test, val"),
        "no annotation": ([*questions, "--annotations", folder / "few.json"], "question 10 has no annotation"),
        "one answer": ([*questions, "--annotations", folder / "one.json"], "has 1 answers"),
        "no questions": (["vqa", *table], "has no questions"),
        "needless annotations": (["vqa", "--data", data / "gqa.json", "--annotations", folder / "few.json"], "itself"),
        "a model that cannot": (["retrieval", *table], "cannot"),
        "no place for a question": (["vqa", "--data", data / "gqa.json", "--prompt", "Question:"], "put {} where"),
    }
