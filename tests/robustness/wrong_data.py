"""Wrong data: question files, images, stored features."""

import os
import shutil
from pathlib import Path

from PIL import Image

from tests.datasets.gqa.test_questions import BROKEN
from tests.robustness.damages import (
    ALL,
    all_images,
    bomb,
    changing,
    each_record,
    evaluating,
    first_image,
    flipping,
    halving,
    mine,
    removing,
    scoring,
    writing,
)
from tests.robustness.wrong_inputs import QUESTIONS, STORED, TRAIN, Case, Damage


def pipe(path: str) -> Damage:
    def do() -> None:
        Path(path).unlink()
        os.mkfifo(path)

    return do


def linking_to_nothing() -> None:
    path = Path(first_image())
    path.unlink()
    path.symlink_to("gone.jpg")


DATA = [
    Case("data set", "none", "train", mine(), "there is no folder", removing("gqa")),
    Case("data set", "no question file", "train", mine(), "no balanced quest", removing(TRAIN)),
    Case("data set", "no images", "train", mine(), "no such image folder", removing("gqa/images")),
    Case(
        "data set",
        "one image missing",
        "train",
        mine("run.small_train_size=null"),
        "uses is missing",
        lambda: Path(first_image()).unlink(),
    ),
    Case(
        "data set",
        "two images of one name",
        "train",
        mine("run.small_train_size=null"),
        "remove one of them",
        lambda: shutil.copy(first_image(), Path(first_image()).with_suffix(".png")),
    ),
    Case(
        "data set",
        "an image that links to nothing",
        "train",
        mine("run.small_train_size=null"),
        "1 of them exists but is empty, unreadable or broken links",
        linking_to_nothing,
    ),
    Case(
        "data set",
        "an image that is a named pipe",
        "train",
        mine("run.small_train_size=null"),
        "1 of them exists but is empty, unreadable or broken links",
        lambda: pipe(first_image())(),
    ),
    Case(
        "questions",
        "a named pipe",
        "gqa",
        scoring(),
        "can't be read (a named pipe, not a file)",
        pipe(QUESTIONS),
    ),
    Case(
        "questions",
        "cut off",
        "train",
        mine(),
        f"{TRAIN}: the question file is cut",
        halving(TRAIN),
    ),
    *(
        Case("questions", name, "train", mine(), parts[0], writing(TRAIN, content))
        for name, (content, parts) in BROKEN.items()
    ),
    Case("questions", "no text", "train", mine(), "isn't UTF-8", writing(TRAIN, b"\x89PNG\xff")),
    Case(
        "questions",
        "a number without end",
        "train",
        mine(),
        "too many digits",
        writing(TRAIN, '{"1": {"question": "What?", "imageId": ' + "9" * 5000 + "}}"),
    ),
    Case(
        "questions",
        "an image that would lie elsewhere",
        "train",
        mine("run.small_train_size=null"),
        "is missing (../../etc/passwd)",
        changing(TRAIN, lambda q: next(iter(q.values())).update(imageId="../../etc/passwd")),
    ),
    Case(
        "questions",
        "an id that steers the terminal",
        "train",
        mine(),
        "question \\x1b[2Jx has no `question`",
        writing(TRAIN, {"\x1b[2Jx": {"imageId": "n1"}}),
    ),
    Case(
        "questions",
        "a folder without shards",
        "leaderboard",
        ["--questions=gqa/images", "--predictions=predictions.json", "--out=new.json"],
        "no *.json files",
    ),
    Case(
        "questions",
        "without answers",
        "gqa",
        scoring(),
        "have no `answer`",
        changing(QUESTIONS, each_record(lambda r: r.pop("answer"))),
    ),
    Case(
        "questions",
        "none of them balanced",
        "gqa",
        scoring(),
        "in the balanced subset",
        changing(QUESTIONS, each_record(lambda r: r.update(isBalanced=False))),
    ),
    Case(
        "questions",
        "a program of another form",
        "gqa",
        scoring(),
        "of another form than GQA's",
        changing(QUESTIONS, each_record(lambda r: r.update(semantic="select"))),
    ),
    Case(
        "questions",
        "entailed ones that are no ids",
        "gqa",
        scoring(),
        "of another form than GQA's",
        changing(QUESTIONS, each_record(lambda r: r.update(entailed=[["02"]]))),
    ),
    Case(
        "questions",
        "a store that can't be written",
        "extract",
        mine(*STORED, "datasets.gqa_fusion.root=picture.jpg"),
        "there is no folder",
    ),
]


IMAGE_CASES = [
    *(
        Case("image", wrong, "ask", ["picture.jpg", "what?"], says, damage)
        for wrong, says, damage in (
            ("not there", "No such file", removing("picture.jpg")),
            ("empty", "the image file is empty", writing("picture.jpg", "")),
            ("a text", "not a supported image format", writing("picture.jpg", "no picture")),
            ("cut off", "image file is truncated", halving("picture.jpg")),
            ("a named pipe", "(a named pipe, not a file)", pipe("picture.jpg")),
            (
                "PostScript, which Pillow would hand to a program",
                "not a supported image",
                writing("picture.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"),
            ),
        )
    ),
    Case(
        "image", "a folder without pictures", "ask", ["gqa", "what?"], "no pictures in this folder"
    ),
    *(
        Case(
            "images",
            wrong,
            "train",
            mine(f"datasets.gqa_fusion.images={name}"),
            says,
            writing(name, "no archive"),
        )
        for wrong, name, says in (
            ("a damaged zip archive", "images.zip", "not a whole zip archive"),
            ("a damaged tar archive", "images.tar", "not a whole tar archive"),
            ("a compressed tar archive", "images.tar.gz", "Decompress it to .tar"),
            ("a damaged table", "images.parquet", "not a whole Parquet file"),
            ("a file of another kind", "images.rar", "read from folders, addresses, and files"),
        )
    ),
    Case(
        "images",
        "an unknown kind of address",
        "train",
        mine("datasets.gqa_fusion.images=nowhere://images"),
        "this kind of address can't be read",
    ),
    Case(
        "image", "more pixels than memory", "ask", ["bomb.png", "what?"], "decompression bomb", bomb
    ),
    Case(
        "image",
        "damaged, in training",
        "train",
        mine(ALL),
        "image can't be read",
        all_images(lambda path: path.write_bytes(path.read_bytes()[:300])),
        begins=True,
    ),
    Case(
        "image",
        "empty, in training",
        "train",
        mine(ALL),
        "exist but are empty, unreadable or broken links",
        all_images(lambda path: path.write_bytes(b"")),
    ),
    Case(
        "image",
        "damaged, in evaluation",
        "evaluate",
        evaluating(),
        "image can't be read",
        all_images(lambda path: path.write_bytes(path.read_bytes()[:300])),
        begins=True,
    ),
]


TRAINING_STORED = mine(*STORED)
STORES = [
    Case(
        "features",
        "none",
        "train",
        mine(*STORED, "run.features.root=none"),
        "there is no complete feature store",
    ),
    Case(
        "features",
        "of other options",
        "train",
        mine(*STORED, "run.features.dtype=fp32"),
        "differs in dtype",
    ),
    Case(
        "features",
        "no index",
        "train",
        TRAINING_STORED,
        "there is no complete feature store",
        lambda: [each.unlink() for each in Path("features").rglob("index.arrow")],
    ),
    Case(
        "features",
        "a shard missing",
        "train",
        TRAINING_STORED,
        "missing or damaged",
        lambda: next(Path("features").rglob("*.safetensors")).unlink(),
    ),
    Case(
        "features",
        "a shard of something else",
        "train",
        TRAINING_STORED,
        "missing or damaged",
        lambda: next(Path("features").rglob("*.safetensors")).write_bytes(b"x"),
    ),
    Case(
        "features",
        "a flipped bit, found by --verify",
        "extract",
        [*TRAINING_STORED, "--verify"],
        "--rebuild",
        flipping("features/grid-*/*.safetensors"),
    ),
    Case(
        "features",
        "a flipped bit, found while extracting",
        "extract",
        TRAINING_STORED,
        "--rebuild",
        flipping("features/grid-*/*.safetensors"),
    ),
    Case(
        "features",
        "an image that has changed",
        "train",
        TRAINING_STORED,
        "is out of date for",
        all_images(lambda path: Image.new("RGB", (9, 9)).save(path)),
    ),
    Case(
        "features",
        "a store for their root",
        "train",
        TRAINING_STORED,
        "is itself a store",
        lambda: (
            Path("features").rename("old") and next(Path("old").glob("grid-*/")).rename("features")
        ),
    ),
    Case(
        "features",
        "encoders that are trained",
        "train",
        mine("run.features.root=features"),
        "would go stale",
    ),
    Case(
        "features",
        "pooling that doesn't fit",
        "train",
        mine(*STORED, "run.features.pooling=3"),
        "must divide",
    ),
    Case(
        "features",
        "views that are all the same",
        "train",
        mine(*STORED, "run.features.views=2"),
        "vis_processor.train isn't random",
    ),
    Case(
        "features",
        "a root that is a file",
        "extract",
        mine(*STORED, "run.features.root=picture.jpg"),
        "can't be written",
    ),
]
