"""Wrong weights, and states of runs."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from lavis_ext.runners.state import state_paths
from tests.fuzzing.fuzz_weights import Code
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
        mine(f"model.streams.segmentation.weights={NOWHERE}/sam.pt"),
        "could not download",
    ),
    Case(
        "weights",
        "a hash that is none",
        "train",
        mine(f"model.streams.segmentation.weights='{NOWHERE}/sam.pt#md5=00'"),
        "is no hash",
    ),
    Case(
        "weights",
        "a hub that doesn't answer",
        "train",
        mine("model.streams.grid.weights=group/name"),
        "the Hugging Face hub did not give it",
    ),
    Case(
        "weights",
        "a tokenizer that is none",
        "train",
        mine("model.streams.grid.tokenizer=eval.yaml"),
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
