"""Wrong data: question files, images, stored features."""

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
from tests.robustness.wrong_inputs import QUESTIONS, STORED, TRAIN, Case

DATA = [
    Case("data set", "none", "train", mine(), "there is no folder", removing("gqa")),
    Case("data set", "no question file", "train", mine(), "no balanced quest", removing(TRAIN)),
    Case("data set", "no images", "train", mine(), "no such image folder", removing("gqa/images")),
    Case(
        "data set",
        "one image missing",
        "train",
        mine("run.small_train_size=null"),
        "are missing",
        lambda: Path(first_image()).unlink(),
    ),
    Case(
        "questions", "cut off", "train", mine(), f"{TRAIN}: the question file brea", halving(TRAIN)
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
        "are missing (../../etc/passwd)",
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
            ("empty", "an empty file", writing("picture.jpg", "")),
            ("a text", "not an image that is read here", writing("picture.jpg", "no picture")),
            ("cut off", "image file is truncated", halving("picture.jpg")),
            (
                "PostScript, which Pillow would hand to a program",
                "not an image that is read",
                writing("picture.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"),
            ),
        )
    ),
    Case("image", "a folder", "ask", ["gqa", "what?"], "Is a directory"),
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
        "an empty file",
        all_images(lambda path: path.write_bytes(b"")),
        begins=True,
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
        "there is no finished store",
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
        "there is no finished store",
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
        "an earlier state of",
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
        "would be those of its start",
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
        "gives the same image every time",
    ),
    Case(
        "features",
        "a root that is a file",
        "extract",
        mine(*STORED, "run.features.root=picture.jpg"),
        "can't be written",
    ),
]
