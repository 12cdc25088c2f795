"""Tiny data sets in all formats: 12 questions about 6 images per split."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = 6
ASKED = ("What color is it?", "Is it round?")
SAID = (["red"] * 6 + ["crimson"] * 3 + ["a red"], ["yes"] * 9 + ["no"])
TYPES = (("what color is", "other"), ("is it", "yes/no"))
Written = dict[str, list[dict[str, Any]]]


def picture(path: Path, place: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 32), (40 * place, 90, 200 - 30 * place)).save(path)


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def numbered() -> list[tuple[int, int, int]]:
    """Number, image and kind of each question."""
    return [(10 * place + kind, 9 + place, kind) for place in range(IMAGES) for kind in range(2)]


def asked(kind: int, place: int) -> str:
    """Each image has a distinct question, so that all have mismatched ones."""
    return f"{ASKED[kind][:-1]}, shape {place}?"


def people(kind: int) -> list[dict[str, Any]]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
        for place, answer in enumerate(SAID[kind])
    ]


def coco_pairs(root: Path, version: str) -> None:
    """VQAv2's (``v2_``) or OK-VQA's files, pictures under COCO's names of 2014."""
    for part in ("train2014", "val2014", "test-dev2015"):
        questions = [
            {"image_id": image, "question": asked(kind, image), "question_id": question}
            for question, image, kind in numbered()
        ]
        annotations = [
            {
                "question_type": TYPES[kind][0],
                "multiple_choice_answer": SAID[kind][0],
                "answers": people(kind),
                "image_id": image,
                "answer_type": TYPES[kind][1],
                "question_id": question,
            }
            for question, image, kind in numbered()
        ]
        head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": part}
        name = f"{version}OpenEnded_mscoco_{part}_questions.json"
        save(root / name, {**head, "questions": questions})
        name = f"{version}mscoco_{part}_annotations.json"
        if not part.startswith("test"):
            save(root / name, {"annotations": annotations[::-1], **head})
        folder = "test2015" if part.startswith("test") else part
        for place in range(IMAGES):
            picture(root / "images" / folder / f"COCO_{folder}_{9 + place:012d}.jpg", place)


def vqav2(root: Path) -> None:
    coco_pairs(root, "v2_")


def okvqa(root: Path) -> None:
    coco_pairs(root, "")


def aokvqa(root: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        records = [
            {
                "split": split,
                "image_id": 100 * number + image,
                "question_id": f"22Mex{question}",
                "question": asked(kind, image),
                "choices": ["red", "yes"],
                **(
                    {}
                    if split == "test"
                    else {
                        "correct_choice_idx": kind,
                        "direct_answers": SAID[kind],
                        "difficult_direct_answer": question == 0,
                    }
                ),
            }
            for question, image, kind in numbered()
        ]
        save(root / f"aokvqa_v1p0_{split}.json", records)
        for place in range(IMAGES):
            name = f"{100 * number + 9 + place:012d}.jpg"
            picture(root / "images" / f"{split}2017" / name, place)


def vizwiz(root: Path) -> None:
    for split in ("train", "val", "test"):
        names = [f"VizWiz_{split}_{place:08d}.jpg" for place in range(2 * IMAGES)]
        records = [
            {
                "image": name,
                "question": asked(place % 2, place),
                **(
                    {}
                    if split == "test"
                    else {
                        "answers": [
                            {"answer": answer, "answer_confidence": "maybe"}
                            for answer in SAID[place % 2]
                        ],
                        "answer_type": TYPES[place % 2][1],
                        "answerable": 1,
                    }
                ),
            }
            for place, name in enumerate(names)
        ]
        save(root / "Annotations" / f"{split}.json", records)
        for place, name in enumerate(names):
            picture(root / "images" / split / name, place % IMAGES)


FORMATS: dict[str, Callable[[Path], None]] = {
    "vqav2": vqav2,
    "okvqa": okvqa,
    "aokvqa": aokvqa,
    "vizwiz": vizwiz,
}
