"""Wrong data in VQA's, A-OKVQA's and custom formats."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from tests.datasets.vqa.written import FORMATS
from tests.robustness.damages import changing, write
from tests.robustness.wrong_inputs import Case, Damage, nothing

QUESTIONS = "vqa/v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "vqa/v2_mscoco_train2014_annotations.json"
AOKVQA = "vqa/aokvqa_v1p0_train.json"
CSV = "image,question,answer\nn1.jpg,What?,yes\n"


def asking(name: str, damage: Damage = nothing, **section: Any) -> Damage:
    """Create a valid data set and a config that trains on it, then damage it."""

    def do() -> None:
        if name in FORMATS:
            FORMATS[name](Path("vqa"))
        Path("vqa/images").mkdir(parents=True, exist_ok=True)
        config = OmegaConf.load("mine.yaml")
        config.datasets = {name: {"root": "vqa", **section}}
        config.run |= {"task": "vqa_fusion", "metric": "vqa_accuracy", "batch_size_train": 8}
        OmegaConf.save(config, "vqa.yaml")
        damage()

    return do


def member(path: str, name: str, change: Callable[[list[Any]], object]) -> Damage:
    """Change a list in a file's member."""

    def do(content: dict[str, Any]) -> dict[str, Any]:
        change(content[name])
        return content

    return changing(path, do)


def without_answers() -> None:
    Path("vqa/aokvqa_v1p0_test.json").rename(AOKVQA)
    Path("vqa/images/test2017").rename("vqa/images/other")


def parquet_of_bytes() -> bytes:
    columns = {"image": ["n1.jpg"], "question": [b"What?"], "answer": ["yes"]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def gqa_task() -> None:
    config = OmegaConf.load("vqa.yaml")
    config.run |= {"task": "gqa_fusion", "metric": "answer_accuracy"}
    OmegaConf.save(config, "vqa.yaml")


def table(content: str, **columns: Any) -> Damage:
    return asking("question_table", every_split("csv", content), columns=columns)


def every_split(suffix: str, content: Any) -> Damage:
    """Write the same file for all splits, since a missing one would be detected first."""

    def do() -> None:
        for split in ("train", "val", "test"):
            write(f"vqa/{split}.{suffix}", content)

    return do


VQA = [
    Case("VQA", wrong, "train", ["--cfg-path", "vqa.yaml"], says, damage)
    for wrong, says, damage in (
        (
            "no annotations",
            "no annotations of split 'train'",
            asking("vqav2", lambda: Path(ANNOTATIONS).unlink()),
        ),
        (
            "annotations of other images",
            "are they of the same split?",
            asking("vqav2", member(ANNOTATIONS, "annotations", lambda a: a[0].update(image_id=5))),
        ),
        (
            "annotations of other questions",
            "are they of the same split?",
            asking("vqav2", member(ANNOTATIONS, "annotations", lambda a: a.pop())),
        ),
        (
            "questions of a list",
            "an object with the list `questions`",
            asking("vqav2", changing(QUESTIONS, lambda c: c["questions"])),
        ),
        (
            "an image that is no number",
            "not a whole number",
            asking("vqav2", member(QUESTIONS, "questions", lambda q: q[0].update(image_id="x"))),
        ),
        (
            "names of images without a number",
            "it must be a name with {image_id",
            asking("vqav2", image_name="photograph"),
        ),
        (
            "training questions without answers",
            "has an answer",
            asking("aokvqa", without_answers),
        ),
        (
            "answers that the model doesn't know",
            "that the model chooses from",
            asking(
                "aokvqa",
                changing(
                    "vqa/aokvqa_v1p0_val.json",
                    lambda c: [each | {"direct_answers": ["zebra"]} for each in c],
                ),
            ),
        ),
        ("a table without a column", "no column 'reply'", table(CSV, answer="reply")),
        (
            "a table with a broken list of answers",
            "the answer in line 3 begins with [ but isn't a JSON list",
            table(CSV + "n2.jpg,What?,[red]\n"),
        ),
        (
            "a table with an infinite answer",
            "is an infinite number, not a text",
            table(CSV + "n2.jpg,What?,[1e999]\n"),
        ),
        (
            "a compressed table that is cut off",
            "the compressed table is damaged or cut off",
            asking("question_table", every_split("csv.gz", gzip.compress(CSV.encode())[:-9])),
        ),
        (
            "a Parquet table of bytes",
            "`question` of question 0 is bytes, not a string",
            asking("question_table", every_split("parquet", parquet_of_bytes())),
        ),
        ("a table with a short line", "line 3 has 1 cells", table(CSV + "n2.jpg\n")),
        ("no table", "no table of split 'train'", asking("question_table")),
        (
            "a conversation without turns",
            "has no `conversations`",
            asking("conversations", every_split("json", [{"image": "a.jpg"}])),
        ),
        (
            "GQA's task",
            "isn't in GQA's layout",
            asking("vizwiz", gqa_task),
        ),
    )
]
