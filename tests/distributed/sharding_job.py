"""A job of two processes that answers with a sharded pipeline and trains its reader.

Each prints a line of JSON.
"""

import json

import torch

from lavis_ext.decoders.fid_reader import FidReader
from lavis_ext.distributed.process_group import is_main_process, process_group, rank
from lavis_ext.distributed.sharding import (
    GradientAverages,
    clip_gradients,
    is_sharded,
    local_bytes,
    shard,
    whole,
)
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests.tiny import make_answering_model, make_samples

PARTS = ("reader", "captioner")


def bytes_here(model: PnpVqaFusion) -> list[int]:
    """Bytes of each part's parameters in this process."""
    return [sum(map(local_bytes, model.get_submodule(part).parameters())) for part in PARTS]


def gradients(reader: FidReader) -> dict[str, torch.Tensor]:
    """The reader's gradients for all processes' questions, gathered in the main process."""
    reader.requires_grad_(True)
    averages = GradientAverages(reader)
    for last in (False, True):
        averages.set_last(last)
        encoded = reader.encode([f"is it {rank()}?"], [["a red ring", f"a ring {last}"]])
        reader.loss(encoded, ["yes"]).sum().backward()
    averages.average()
    norm = clip_gradients(reader.parameters(), 0.5)
    found = {n: whole(p.grad) for n, p in reader.named_parameters() if p.grad is not None}
    return {**found, "norm": norm}


if __name__ == "__main__":
    device = torch.device("cpu")
    model, samples = make_answering_model(), make_samples(2)
    with process_group(device, 1.0, 60.0):
        before, expected = bytes_here(model), model.answer(samples)
        by_whole = gradients(make_answering_model().reader)
        units = shard(model, model.shard_units(), device)
        output = model.answer(samples)
        result = {
            "units": units,
            "whole": before,
            "sharded": bytes_here(model),
            "blocks": sum(
                parameter.numel() * parameter.element_size()
                for unit in units
                for parameter in model.get_submodule(unit).parameters()
                if is_sharded(parameter)
            ),
            "same": output.answers == expected.answers and output.captions == expected.captions,
        }
        by_sharded = gradients(model.reader)
        if is_main_process():
            result["differences"] = [
                float((by_whole[name] - by_sharded[name]).abs().max()) for name in by_whole
            ]
            result["norm"] = float(by_whole["norm"])
        print(json.dumps(result), flush=True)
