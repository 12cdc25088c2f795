"""All wrong inputs; this file has those of the scoring, ask and download commands."""

import gzip
import json
from pathlib import Path
from typing import Any

from tests.robustness.damages import (
    CHOICES,
    SCENES,
    changing,
    each_record,
    scoring,
    write,
    writing,
    zipped,
)
from tests.robustness.wrong_configs import CONFIGS
from tests.robustness.wrong_data import DATA, IMAGE_CASES, STORES
from tests.robustness.wrong_inputs import NOWHERE, QUESTIONS, Case, nothing
from tests.robustness.wrong_vqa import VQA
from tests.robustness.wrong_weights import STATES, WEIGHTS


def first_twice(content: list[Any]) -> list[Any]:
    return [*content, content[0]]


PREDICTIONS = [
    *(
        Case("predictions", wrong, "gqa", scoring(), says, writing("predictions.json", content))
        for wrong, content, says in (
            ("empty", "", "the prediction file is empty"),
            ("an empty list", "[]", "but the file is empty"),
            ("cut off", "[{", "is cut off"),
            ("an object of scores", '{"1": {"score": 3}}', "question 1 has score"),
            ("texts", '["yes"]', "but record 0 (counted from 0) is a string"),
            ("other names", '[{"question": "1", "guess": "yes"}]', "has question, guess"),
            ("an id that is true", '[{"questionId": true, "prediction": "a"}]', "has questionId"),
            ("several answers", '[{"questionId": "1", "prediction": ["a", "b"]}]', "is a list"),
            (
                "a damaged archive",
                gzip.compress(b'[{"questionId": "1", "prediction": "a"}]')[:-12],
                "damaged or cut off",
            ),
            (
                "an infinite answer",
                '[{"questionId": "1", "prediction": 1e999}]',
                "is an infinite number, not a string",
            ),
            ("an answer that is NaN", '[{"questionId": "1", "prediction": NaN}]', "is NaN, not"),
        )
    ),
    Case("predictions", "not there", "gqa", scoring(predictions="gone.json"), "No such file"),
    Case(
        "predictions",
        "some missing",
        "gqa",
        scoring(),
        "no prediction for",
        changing("predictions.json", lambda content: content[:9]),
    ),
    Case(
        "predictions",
        "one twice",
        "gqa",
        scoring(),
        "predicted more than once",
        changing("predictions.json", first_twice),
    ),
    Case(
        "predictions",
        "one unknown",
        "gqa",
        scoring(),
        "are they of another split?",
        changing(
            "predictions.json",
            lambda content: [*content, {"questionId": "999", "prediction": "yes"}],
        ),
    ),
    Case(
        "predictions",
        "too few to compare",
        "compare",
        ["predictions.json", "short.json", f"--questions={QUESTIONS}"],
        "short.json: no prediction",
        lambda: write("short.json", json.loads(Path("predictions.json").read_text())[:9]),
    ),
    Case(
        "predictions",
        "too few for the server",
        "leaderboard",
        [*scoring(), "--out=server.json"],
        "no prediction for",
        changing("predictions.json", lambda content: content[:9]),
    ),
    Case(
        "predictions",
        "an output nowhere",
        "report",
        [*scoring(), "--out=none/report.html"],
        "there is no folder none",
    ),
    Case(
        "predictions",
        "an output that is a folder",
        "gqa",
        [*scoring(), "--json=gqa"],
        "is a folder; name a file",
    ),
    Case("predictions", "too few resamples", "gqa", [*scoring(), "--resamples=10"], "must be 0"),
    Case("predictions", "a negative seed", "gqa", [*scoring(), "--seed=-1"], "not be negative"),
    Case(
        "choices",
        "a list",
        "gqa",
        scoring(**CHOICES),
        "but record 0 (counted from 0) is a list",
        writing(CHOICES["choices"], "[[1]]"),
    ),
    Case(
        "choices",
        "no such lists",
        "gqa",
        scoring(**CHOICES),
        "has no such lists",
        writing(CHOICES["choices"], {"1": {"valid": ["yes"]}}),
    ),
    Case(
        "choices",
        "of another split",
        "gqa",
        scoring(choices="gqa/choices/testdev_choices.json"),
        "no choices for",
    ),
    Case(
        "scene graphs",
        "no JSON",
        "gqa",
        scoring(**SCENES),
        "is cut off",
        writing(SCENES["scenes"], "{"),
    ),
    Case(
        "scene graphs",
        "nested without end",
        "gqa",
        scoring(**SCENES),
        "nested too deeply",
        writing(SCENES["scenes"], "[" * 100_000),
    ),
    Case(
        "scene graphs",
        "an image without size",
        "gqa",
        scoring(**SCENES),
        "a size of 0x",
        changing(SCENES["scenes"], each_record(lambda graph: graph.update(width=0))),
    ),
    Case(
        "scene graphs",
        "a box without end",
        "gqa",
        scoring(**SCENES),
        "no scene graph in GQA's format",
        changing(
            SCENES["scenes"],
            each_record(lambda graph: next(iter(graph["objects"].values())).update(x=float("inf"))),
        ),
    ),
    Case(
        "scene graphs",
        "of another split",
        "gqa",
        scoring(**{**SCENES, "scenes": "gqa/sceneGraphs/testdev_sceneGraphs.json"}),
        "no scene graph for",
    ),
    Case(
        "attentions",
        "no maps",
        "gqa",
        scoring(**SCENES),
        "is not rows of numbers",
        writing("maps.json", [{"questionId": "1", "attention": [0.5]}]),
    ),
    Case(
        "attentions",
        "not finite",
        "gqa",
        scoring(**SCENES),
        "aren't finite",
        writing("maps.json", [{"questionId": "1", "attention": [[float("nan")]]}]),
    ),
    Case(
        "attentions",
        "of uneven size",
        "gqa",
        scoring(**SCENES),
        "differ in size",
        changing("maps.json", lambda content: content[3].update(attention=[[0.1] * 7] * 6)),
    ),
    Case(
        "attentions",
        "regions that are no boxes",
        "gqa",
        [*scoring(**SCENES), "--objectFeatures"],
        "has 7 numbers, not 5",
    ),
]

UNTRAINED = ["--model-type", "base_esam"]
ASKED = [
    Case("ask", wrong, "ask", arguments, says)
    for wrong, arguments, says in (
        ("an empty question", ["picture.jpg", ""], "The question is empty"),
        ("one of several empty", ["picture.jpg", "what?", " "], "Question 2 is empty"),
        ("too many questions", ["picture.jpg", *["what?"] * 51], "51 questions are too many"),
        ("no question", ["picture.jpg"], "Give --question"),
        ("a picture for a question", ["picture.jpg", "other.jpg"], "put --question before each"),
        ("no PNG to draw to", ["picture.jpg", "what?", "--out", "x.jpg"], "suffix .png"),
        ("a folder to draw to", ["picture.jpg", "what?", "--out", "gqa/../gqa.png/x.png"], ""),
        ("no such type", ["picture.jpg", "what?", "--model-type", "base_esm"], "Did you mean"),
        (
            "an option of a run",
            ["picture.jpg", "what?", "--options", "run.seed=3"],
            "only model options",
        ),
        (
            "a misspelt option",
            [
                "picture.jpg",
                "what?",
                *UNTRAINED,
                "--options",
                "model.captioner.samplin.num_captions=5",
            ],
            "Did you mean 'sampling'?",
        ),
        (
            "no such module",
            ["picture.jpg", "what?", "--imports", "nope_module"],
            "can't be imported",
        ),
        (
            "weights that are a picture",
            ["picture.jpg", "what?", "--weights", "picture.jpg"],
            "can't be read",
        ),
    )
    if says
]

ARCHIVE = ["here", "--parts", "images", "--base-url", NOWHERE]
DOWNLOADED = [
    Case(
        "download",
        "a site that doesn't answer",
        "download",
        ["there", *ARCHIVE[1:]],
        "gave up after 6 attempts",
    ),
    Case("download", "no address", "download", ["here", "--base-url", "nope"], "not a valid URL"),
    Case(
        "download",
        "a folder that is a file",
        "download",
        ["picture.jpg"],
        "can't be read or written",
    ),
    Case(
        "download",
        "a folder of somebody's",
        "download",
        ["gqa", "--parts", "images"],
        "exists and wasn't created by this download",
    ),
    *(
        Case("download", wrong, "download", [*ARCHIVE, *more], says, damage)
        for wrong, says, more, damage in (
            ("an archive of another hash", "the known one is", [], nothing),
            (
                "an archive that is none",
                "is damaged",
                ["--accept-changed"],
                writing("here/images.zip", "<html>log in</html>"),
            ),
            (
                "a path that leads out",
                "a path outside its folder",
                ["--accept-changed"],
                zipped({"images/1.jpg": b"1", "images/../../out.jpg": b"2"}),
            ),
            (
                "no images in it",
                "it has no *.jpg",
                ["--accept-changed"],
                zipped({"a.txt": b"1"}),
            ),
        )
    ),
]


CASES: list[Case] = [
    *CONFIGS,
    *DATA,
    *VQA,
    *IMAGE_CASES,
    *WEIGHTS,
    *STORES,
    *STATES,
    *PREDICTIONS,
    *ASKED,
    *DOWNLOADED,
]
ALONE = (CONFIGS[0], DATA[0], PREDICTIONS[0], DOWNLOADED[2])
"""Cases that are also run in a separate process, as by a user."""
