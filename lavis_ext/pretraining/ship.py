"""``python -m lavis_ext.pretraining.ship RUN ...``: put weights of finished runs into the package.

Runs are those of the recipes in ``projects/mini``.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

import lavis_ext.pretraining  # noqa: F401  (registers the models that the runs name)
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError, command
from lavis_ext.common.files import written_aside
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.pretraining.base import PretrainingModel
from lavis_ext.registry import registry

MINIATURE = Path(__file__).parents[1] / "miniature"
FUSION = "fusion_encoder.safetensors"


def ship(run: Path, out: Path) -> list[Path]:
    """Write the weights of a run, which are parts of the miniature or its fusion.

    Args:
        run: output folder of a finished run.
        out: folder to write to.

    Returns:
        The files written.

    Raises UserError for a folder without the weights and scores of a finished run.
    """
    if (run / f"{PnpVqaFusion.weights_name}_best.safetensors").is_file():
        return [_ship_fusion(run, out)]
    return _ship_parts(run, out)


def _ship_fusion(run: Path, out: Path) -> Path:
    """Write fusion weights, without the path of the run's folder in their config."""
    weights = TrainedWeights.load(run / f"{PnpVqaFusion.weights_name}_best.safetensors")
    config = {**weights.config, "run": {**weights.config["run"], "output_dir": "output"}}
    out.mkdir(parents=True, exist_ok=True)
    path = out / FUSION
    replace(weights, config=config).save(path)
    return path


def _ship_parts(run: Path, out: Path) -> list[Path]:
    """Write each part to a safetensors file, with the parameter names of the published model.

    The metadata has ``recipe`` (name of the YAML), ``data_seed``, ``steps`` and ``scores`` (on
    testdev), as JSON. Raises UserError for an unfinished run.
    """
    weights = TrainedWeights.load(run / f"{PretrainingModel.weights_name}_best.safetensors")
    section = OmegaConf.create(weights.config["model"])
    with torch.device("meta"):
        model = registry.get_model_class(section.arch).from_config(section, load_weights=False)
    try:
        scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["testdev"]
    except (OSError, KeyError) as error:
        raise UserError(f"{run}: no scores of testdev in metrics.json; let the run end.") from error
    (data,) = weights.config["datasets"].values()
    facts = {
        "recipe": run.name.rsplit("-", 2)[0],
        "data_seed": data["seed"],
        "steps": weights.step,
        "scores": {name: round(value, 4) for name, value in scores.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "lavis_ext": json.dumps(facts)}
    for prefix, file in model.shipped.items():
        repeated = model.tied_names(prefix)
        tensors = {
            name.removeprefix(prefix): tensor.to(model.shipped_dtype)
            for name, tensor in weights.state.items()
            if name.startswith(prefix) and name not in repeated
        }
        with written_aside(out / file) as aside:
            save_file(tensors, aside, metadata=metadata)
    return [out / file for file in model.shipped.values()]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Ship the runs on the command line and print the files' sizes."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.pretraining.ship",
        description="Put weights trained by the recipes under projects/mini into the package.",
    )
    parser.add_argument("runs", nargs="+", type=path_argument, help="folders of finished runs")
    parser.add_argument("--out", type=path_argument, default=MINIATURE, help="folder (%(default)s)")
    options = parser.parse_args(argv)
    for run in options.runs:
        for path in ship(run, options.out):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
