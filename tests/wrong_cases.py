"""The cases of wrong inputs, by kind, and how each is made from a folder that is sound."""

import json
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fuzz_weights import Code
from PIL import Image
from safetensors.torch import save_file
from test_questions import BROKEN
from wrong_configs import OPTIONS, YAMLS
from wrong_inputs import BEST, NOWHERE, QUESTIONS, STORED, TRAIN, Case, Damage, nothing

from lavis_ext.models.fusion_weights import FusionWeights
from lavis_ext.runners.run_state import state_paths


def write(path: str, content: Any) -> None:
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data if isinstance(data, bytes) else data.encode())


def writing(path: str, content: Any) -> Damage:
    return partial(write, path, content)


def removing(path: str) -> Damage:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def halving(path: str) -> Damage:
    return lambda: write(path, Path(path).read_bytes()[: Path(path).stat().st_size // 2])


def changing(path: str, change: Callable[[Any], Any]) -> Damage:
    """Change what a JSON file says; a change that returns nothing was made in place."""

    def do() -> None:
        content = json.loads(Path(path).read_text())
        changed = change(content)
        write(path, content if changed is None else changed)

    return do


def each_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], None]:
    def do(content: dict[str, dict[str, Any]]) -> None:
        for record in content.values():
            change(record)

    return do


def flipping(pattern: str) -> Damage:
    """Flip a bit near the end of the first file that fits."""

    def do() -> None:
        path = sorted(Path.cwd().glob(pattern))[0]
        content = bytearray(path.read_bytes())
        content[-50] ^= 1
        path.write_bytes(content)

    return do


def facts_of_weights(change: Callable[[FusionWeights], Any]) -> Damage:
    def do() -> None:
        saved = FusionWeights.load(BEST)
        change(saved)
        saved.save(Path(BEST))

    return do


def torch_file(path: str, content: Any) -> Damage:
    return lambda: torch.save(content, path)


def shards(weight_map: Any) -> Damage:
    return writing("blip/model.safetensors.index.json", {"weight_map": weight_map})


def image(path: str, make: Callable[[Path], object]) -> Damage:
    return lambda: make(Path(path))


def first_image() -> str:
    return str(sorted(Path("gqa/images").iterdir())[0])


def all_images(change: Callable[[Path], object]) -> Damage:
    def do() -> None:
        for path in Path("gqa/images").iterdir():
            change(path)

    return do


def both(*damages: Damage) -> Damage:
    return lambda: [damage() for damage in damages]


def zipped(members: dict[str, bytes], name: str = "here/images.zip") -> Damage:
    def do() -> None:
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)

    return do


def bomb() -> None:
    """A picture of more pixels than Pillow opens, in a few hundred bytes."""
    from struct import pack
    from zlib import compress, crc32

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))

    header = pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", compress(b"")), chunk(b"IEND", b""))
    Path("bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def small(*options: str) -> list[str]:
    return ["--cfg-path", "small.yaml", *(["--options", *options] if options else [])]


def mine(*options: str) -> list[str]:
    return ["--cfg-path", "mine.yaml", *(["--options", *options] if options else [])]


def going_on(*options: str) -> list[str]:
    return mine("run.name=before", "run.resume=auto", *options)


def evaluating(*options: str) -> list[str]:
    data = ["datasets.gqa_fusion.root=gqa", "datasets.gqa_fusion.mini_gqa=null"]
    return ["--cfg-path", "eval.yaml", "--options", *data, f"model.fusion_weights={BEST}", *options]


def scoring(**files: str) -> list[str]:
    given = {"questions": QUESTIONS, "predictions": "predictions.json", **files}
    return [f"--{name}={path}" for name, path in given.items()]


SCENES = {"scenes": "gqa/sceneGraphs/val_sceneGraphs.json", "attentions": "maps.json"}
CHOICES = {"choices": "gqa/choices/val_choices.json"}


CONFIGS = [
    *(
        Case("config, by --options", option, "train", small(option), s)
        for option, s in OPTIONS.items()
    ),
    Case(
        "config, by --options", "both forms", "train", small("run.seed=1", "3"), "'3' isn't of the"
    ),
    *(
        Case(
            "config, YAML", name, "train", ["--cfg-path", "my.yaml"], s, writing("my.yaml", content)
        )
        for name, (content, s) in YAMLS.items()
    ),
    Case("config, YAML", "not there", "train", ["--cfg-path", "gone.yaml"], "No such file"),
    Case("config, YAML", "a folder", "train", ["--cfg-path", "gqa"], "Is a directory"),
    Case("config", "one question alone", "train", mine("run.small_train_size=1"), "no mismatched"),
    Case("config", "nothing to train", "train", mine("run.trainable=[nothing.*]"), "run.trainable"),
    Case("config", "no such metric", "train", mine("run.metric=f1"), "run.metric is 'f1'"),
    Case(
        "config",
        "a metric without its files",
        "train",
        mine("run.metric=consistency"),
        "isn't computed on 'val'",
    ),
    Case("config", "no such split", "train", mine("run.test_splits=[challenge]"), "'challenge'"),
    Case(
        "config",
        "a file of a split that isn't there",
        "train",
        mine("datasets.gqa_fusion.questions={vall: x.json}"),
        "there is no split 'vall'",
    ),
    Case(
        "config",
        "another mini-GQA",
        "train",
        mine("datasets.gqa_fusion.mini_gqa={root: gqa, images: 50}"),
        "images 40 where 50",
    ),
    Case(
        "config",
        "an objective that is a number",
        "train",
        mine("model.objectives.answer=null", "model.objectives.itm=3"),
        "itm is 3",
    ),
    Case(
        "config",
        "evaluating what was trained on",
        "evaluate",
        evaluating("run.valid_splits=[train]"),
        "train can't do two",
    ),
    Case("config", "no GPU", "train", mine("run.device=cuda"), "no CUDA device"),
    Case("config", "evaluating without weights", "evaluate", ["--cfg-path", "eval.yaml"], "or mod"),
    Case("config", "evaluating resumed", "evaluate", evaluating("run.resume=auto"), "isn't saved"),
    Case(
        "config",
        "an output folder that is a file",
        "train",
        mine("run.output_dir=picture.jpg"),
        "no folder can be made",
    ),
]

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

ALL = "run.small_train_size=null"
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

BLIP = "model.blip.weights=blip"
SAM = "model.efficient_sam.weights=sam.pt"
TENSOR = torch.ones(2)
WEIGHTS = [
    Case(
        "weights",
        "not there",
        "evaluate",
        evaluating("model.fusion_weights=gone.safetensors"),
        "there is no file gone.safetensors",
    ),
    Case(
        "weights",
        "no weights",
        "evaluate",
        evaluating("model.fusion_weights=eval.yaml"),
        "can't be",
    ),
    Case("weights", "cut off", "evaluate", evaluating(), "can't be read", halving(BEST)),
    Case(
        "weights",
        "of another kind",
        "evaluate",
        evaluating(),
        "no fusion weights of this library",
        lambda: save_file({"a": TENSOR}, BEST),
    ),
    Case(
        "weights",
        "without a config",
        "evaluate",
        evaluating(),
        "no config of a run",
        facts_of_weights(lambda w: w.config.pop("model")),
    ),
    Case(
        "weights",
        "a config that asks for the environment",
        "evaluate",
        evaluating(),
        "refers to something outside of it",
        facts_of_weights(lambda w: w.config["run"].update(name="${oc.env:HOME}")),
    ),
    Case(
        "weights",
        "a model that there isn't",
        "evaluate",
        evaluating(),
        "No fusion is registered",
        facts_of_weights(lambda w: w.config["model"]["fusion"].update(name="nope")),
    ),
    Case(
        "weights",
        "of another size",
        "evaluate",
        evaluating("model.fusion.d_model=64"),
        "the weights do not fit",
    ),
    Case(
        "weights",
        "of another type",
        "evaluate",
        evaluating("model.model_type=base_esam"),
        "was trained as mini",
    ),
    Case(
        "weights",
        "code in a pickle",
        "train",
        mine(SAM),
        "would run code",
        torch_file("sam.pt", {"model": Code()}),
    ),
    Case(
        "weights",
        "a pickle of something else",
        "train",
        mine(SAM),
        "holds no named tensors",
        torch_file("sam.pt", [1, 2]),
    ),
    Case(
        "weights",
        "sparse tensors",
        "train",
        mine(SAM),
        "no plain tensor under 'a'",
        torch_file("sam.pt", {"a": TENSOR.to_sparse()}),
    ),
    Case(
        "weights",
        "half a pickle",
        "train",
        mine(SAM),
        "is damaged or no weights file",
        both(torch_file("sam.pt", {"a": torch.ones(99)}), halving("sam.pt")),
    ),
    Case(
        "weights",
        "a page in place of a file",
        "train",
        mine(SAM),
        "is damaged or no weights file",
        writing("sam.pt", "<html>not found</html>"),
    ),
    Case(
        "weights",
        "an archive that has no end",
        "train",
        mine(SAM),
        "bytes are packed into",
        zipped({"sam.pt": bytes(10**7)}, "sam.pt"),
    ),
    Case(
        "weights",
        "of another network",
        "train",
        mine(SAM),
        "the weights do not fit",
        torch_file("sam.pt", {"a": TENSOR}),
    ),
    Case(
        "weights",
        "an empty folder",
        "train",
        mine(BLIP),
        "has none of model.safetensors",
        lambda: Path("blip").mkdir(),
    ),
    Case(
        "weights",
        "a shard outside the folder",
        "train",
        mine(BLIP),
        "no file of weights beside it",
        shards({"a": "../fusion_encoder_best.safetensors"}),
    ),
    Case(
        "weights",
        "an index that names itself",
        "train",
        mine(BLIP),
        "no file of weights beside it",
        shards({"a": "model.safetensors.index.json"}),
    ),
    Case(
        "weights",
        "a shard that isn't there",
        "train",
        mine(BLIP),
        "There is no weights file",
        shards({"a": "model-1.safetensors"}),
    ),
    Case(
        "weights",
        "an index of another form",
        "train",
        mine(BLIP),
        "is no index of sharded weights",
        shards([]),
    ),
    Case(
        "weights",
        "an address that doesn't answer",
        "train",
        mine(f"model.efficient_sam.weights={NOWHERE}/sam.pt"),
        "could not download",
    ),
    Case(
        "weights",
        "a hash that is none",
        "train",
        mine(f"model.efficient_sam.weights='{NOWHERE}/sam.pt#md5=00'"),
        "is no hash",
    ),
    Case(
        "weights",
        "a hub that doesn't answer",
        "train",
        mine("model.blip.weights=group/name"),
        "the Hugging Face hub did not give it",
    ),
    Case(
        "weights",
        "a tokenizer that is none",
        "train",
        mine("model.blip.tokenizer=eval.yaml"),
        "is no BERT",
    ),
    Case(
        "weights",
        "a captioner without any",
        "evaluate",
        evaluating("run.task=gqa_reading_comprehension_fusion", "model.captioner.weights=null"),
        "answers of a random captioner mean nothing",
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

STATES = [
    Case("state", "none at the path", "train", mine("run.resume=nowhere"), "doesn't exist"),
    Case("state", "a folder without one", "train", mine("run.resume=gqa"), "no sound state"),
    Case("state", "a file that is none", "train", mine("run.resume=small.yaml"), "can't be read"),
    Case(
        "state", "weights in place of one", "train", mine(f"run.resume={BEST}"), "no state of a run"
    ),
    Case(
        "state",
        "a flipped bit",
        "train",
        mine("run.resume=output/before/state_00000002.safetensors"),
        "checksum is another",
        flipping("output/before/state_00000002*"),
    ),
    Case(
        "state",
        "all damaged",
        "train",
        going_on(),
        "there is no sound state",
        lambda: [write(str(path), b"x") for path in state_paths(Path("output/before"))],
    ),
    Case(
        "state",
        "another architecture",
        "train",
        going_on("model.fusion.dropout=0.3"),
        "model.fusion.dropout",
    ),
    Case(
        "state", "another seed", "train", going_on("run.seed=7"), "run.seed: 42 when saved, now 7"
    ),
    Case(
        "state",
        "other batches",
        "train",
        going_on("run.batch_size_train=8"),
        "questions would be repeated or left out",
    ),
    Case("state", "other questions", "train", going_on(ALL), "small_train_size"),
    Case("state", "a name that is taken", "train", mine("run.name=before"), "is there already"),
]


def first_twice(content: list[Any]) -> list[Any]:
    return [*content, content[0]]


PREDICTIONS = [
    *(
        Case("predictions", wrong, "gqa", scoring(), says, writing("predictions.json", content))
        for wrong, content, says in (
            ("empty", "", "the prediction file is empty"),
            ("an empty list", "[]", "but the file is empty"),
            ("cut off", "[{", "breaks off"),
            ("an object", '{"1": "yes"}', "but the file is an object"),
            ("texts", '["yes"]', "but a record is a text"),
            ("other names", '[{"question_id": "1", "answer": "yes"}]', "question_id, answer"),
            ("an id that is a number", '[{"questionId": 1, "prediction": "a"}]', "ids are texts"),
            ("an answer that is a number", '[{"questionId": "1", "prediction": 2}]', "not a text"),
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
        "the file is a list",
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
        "aren't JSON",
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
        "no scene graph of GQA's form",
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
        "of uneven size",
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
        ("no PNG to draw to", ["picture.jpg", "what?", "--out", "x.jpg"], "suffix .png"),
        ("a folder to draw to", ["picture.jpg", "what?", "--out", "gqa/../gqa.png/x.png"], ""),
        ("no such type", ["picture.jpg", "what?", "--model-type", "base_esm"], "Did you mean"),
        (
            "an option of a run",
            ["picture.jpg", "what?", "--options", "run.seed=3"],
            "begin with mod",
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
        "given up after 6 attempts",
    ),
    Case("download", "no address", "download", ["here", "--base-url", "nope"], "not an address"),
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
        "was not made by this download",
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
                "leads out of its folder",
                ["--accept-changed"],
                zipped({"images/1.jpg": b"1", "images/../../out.jpg": b"2"}),
            ),
            (
                "no images in it",
                "there is no *.jpg in it",
                ["--accept-changed"],
                zipped({"a.txt": b"1"}),
            ),
        )
    ),
]

CASES: list[Case] = [
    *CONFIGS,
    *DATA,
    *IMAGE_CASES,
    *WEIGHTS,
    *STORES,
    *STATES,
    *PREDICTIONS,
    *ASKED,
    *DOWNLOADED,
]
ALONE = (CONFIGS[0], DATA[0], PREDICTIONS[0], DOWNLOADED[2])
"""Cases that are tried in a process of their own too, as a user starts one."""
