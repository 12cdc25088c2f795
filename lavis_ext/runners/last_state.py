"""The state in which a run ends: weights in training, optimizer, and where it stands."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lavis_ext.files import written_aside


def save_last_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write a safetensors file: ``model.<parameter>`` and ``optimizer.<parameter>.<state>``.

    ``facts`` (step, epoch, early stopping) goes into the metadata as JSON. Nothing in the file
    executes code when it is read.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"model.{name}"] = parameter.detach().cpu().contiguous()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value).cpu().contiguous()
    with written_aside(path) as aside:
        save_file(tensors, aside, metadata={"lavis_ext": json.dumps(facts)})
