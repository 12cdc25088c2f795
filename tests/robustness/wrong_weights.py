"""Wrong weights, and states of runs."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from lavis_ext.runners.state import state_paths
from tests.fuzzing.fuzz_weights import Code
from tests.lavis_formulas import checkpoint
from tests.robustness.damages import (
    ALL,
    both,
    evaluating,
    facts_of_weights,
    flipping,
    going_on,
    halving,
    mine,
    shards,
    torch_file,
    write,
    writing,
    zipped,
)
from tests.robustness.wrong_inputs import BEST, NOWHERE, Case

BLIP = "model.streams.grid.weights=blip"
SAM = "model.streams.segmentation.weights=sam.pt"
TENSOR = torch.ones(2)


def half_matching() -> None:
    """Text weights with BERT's common names, image weights with another model's names."""
    state = checkpoint("retrieval")
    torch.save(
        {name.replace("visual_", "image_"): each for name, each in state.items()}, "half.pth"
    )


def torch_saved(path: str) -> None:
    write(path, b"")
    torch.save({"a": TENSOR}, path)


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
        "no trained weights of lavis_ext",
        lambda: save_file({"a": TENSOR}, BEST),
    ),
    Case(
        "weights",
        "without a config",
        "evaluate",
        evaluating(),
        "it has no config",
        facts_of_weights(lambda w: w.config.pop("model")),
    ),
    Case(
        "weights",
        "a config that asks for the environment",
        "evaluate",
        evaluating(),
        "unresolved reference",
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
        "the weights don't match",
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
        "has no named tensors",
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
        "is damaged or not a weights file",
        both(torch_file("sam.pt", {"a": torch.ones(99)}), halving("sam.pt")),
    ),
    Case(
        "weights",
        "a page in place of a file",
        "train",
        mine(SAM),
        "is damaged or not a weights file",
        writing("sam.pt", "<html>not found</html>"),
    ),
    Case(
        "weights",
        "an archive that has no end",
        "train",
        mine(SAM),
        "bytes unpack to",
        zipped({"sam.pt": bytes(10**7)}, "sam.pt"),
    ),
    Case(
        "weights",
        "of another network",
        "train",
        mine(SAM),
        "the weights don't match",
        torch_file("sam.pt", {"a": TENSOR}),
    ),
    Case(
        "weights",
        "of another network whose names half match",
        "train",
        mine("model.streams.grid.weights=half.pth"),
        "These weights are another network's or have unknown names",
        half_matching,
    ),
    Case(
        "weights",
        "in a package that isn't installed",
        "train",
        mine("model.streams.segmentation.weights=installed:nowhere/sam.pt"),
        "model.streams.segmentation.weights: the package 'nowhere' is not installed",
    ),
    Case(
        "weights",
        "a text, for an encoder",
        "train",
        mine("model.streams.segmentation.weights=README.md"),
        "model.streams.segmentation.weights: README.md is damaged or not a weights file",
        writing("README.md", "# Weights"),
    ),
    Case(
        "weights",
        "two different tensors under one name",
        "train",
        mine(SAM),
        "two different tensors have the name a",
        torch_file("sam.pt", {"module.a": TENSOR, "a": 2 * TENSOR}),
    ),
    Case(
        "weights",
        "no sense in the config.json beside them",
        "train",
        mine(BLIP, "model.streams.grid.vision_layer_norm_eps=null"),
        "has no vision_config of BLIP",
        both(lambda: torch_saved("blip/pytorch_model.bin"), writing("blip/config.json", {})),
    ),
    Case(
        "weights",
        "exported to nothing",
        "export",
        [f"--weights={BEST}", "--to=onnx", "out"],
        "can be exported to: transformers, authors, authors_lrp",
    ),
    Case(
        "weights",
        "exported over a folder",
        "export",
        [f"--weights={BEST}", "--to=transformers", "gqa"],
        "is there already",
    ),
    Case(
        "weights",
        "exported below a file",
        "export",
        [f"--weights={BEST}", "--to=authors", "eval.yaml/out.pth"],
        "can't be written (Not a directory)",
    ),
    Case("weights", "merged over a file", "merge", [BEST, "eval.yaml"], "exists already"),
    Case(
        "weights",
        "merged into no folder",
        "merge",
        [BEST, "gone/out"],
        "can't be written (No such file or directory)",
    ),
    Case(
        "weights",
        "exported to a mode of other layers",
        "export",
        [f"--weights={BEST}", "--to=authors_lrp", "out.pth"],
        "supports only lf 1 and t 2",
        facts_of_weights(lambda w: w.config["model"]["fusion"].update(t=3)),
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
        "not a weights file in the same folder",
        shards({"a": "../fusion_encoder_best.safetensors"}),
    ),
    Case(
        "weights",
        "an index that names itself",
        "train",
        mine(BLIP),
        "not a weights file in the same folder",
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
        "is not an index of sharded weights",
        shards([]),
    ),
    Case(
        "weights",
        "an address that doesn't answer",
        "train",
        mine(f"model.streams.segmentation.weights={NOWHERE}/sam.pt"),
        "could not download",
    ),
    Case(
        "weights",
        "a hash that is none",
        "train",
        mine(f"model.streams.segmentation.weights='{NOWHERE}/sam.pt#md5=00'"),
        "is not a hash",
    ),
    Case(
        "weights",
        "a hub that doesn't answer",
        "train",
        mine("model.streams.grid.weights=group/name"),
        "the Hugging Face hub did not provide it",
    ),
    Case(
        "weights",
        "a tokenizer that is none",
        "train",
        mine("model.streams.grid.tokenizer=eval.yaml"),
        "is not a BERT",
    ),
    Case(
        "weights",
        "a captioner without any",
        "evaluate",
        evaluating("run.task=gqa_reading_comprehension_fusion", "model.captioner.weights=null"),
        "a random captioner answers nothing useful",
    ),
]


STATES = [
    Case("state", "none at the path", "train", mine("run.resume=nowhere"), "doesn't exist"),
    Case("state", "a folder without one", "train", mine("run.resume=gqa"), "no intact state"),
    Case("state", "a file that is none", "train", mine("run.resume=small.yaml"), "can't be read"),
    Case(
        "state", "weights in place of one", "train", mine(f"run.resume={BEST}"), "not a run state"
    ),
    Case(
        "state",
        "a flipped bit",
        "train",
        mine("run.resume=output/before/state_00000002.safetensors"),
        "checksum doesn't match",
        flipping("output/before/state_00000002*"),
    ),
    Case(
        "state",
        "all damaged",
        "train",
        going_on(),
        "there is no intact state",
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
        "examples would be repeated or left out",
    ),
    Case("state", "other questions", "train", going_on(ALL), "small_train_size"),
    Case("state", "a name that is taken", "train", mine("run.name=before"), "already exists"),
]
