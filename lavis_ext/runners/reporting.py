"""Write the HTML report of a run's evaluations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_ext.checkpoints.tensor_files import DamagedTensors, count_numbers
from lavis_ext.checkpoints.trained_weights import TrainedWeights, find_trained_weights
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.version import __version__
from lavis_ext.config.loader import Config
from lavis_ext.evaluation.report.content import ReportedSplit, report_content
from lavis_ext.evaluation.report.page import write_report
from lavis_ext.models.base import TrainableModel
from lavis_ext.registry import registry
from lavis_ext.runners.freezing import trained_parameters
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.progress import duration
from lavis_ext.runners.run_folder import LINES

REPORT = "report.html"


def write_run_report(
    folder: Path,
    cfg: Config,
    splits: Mapping[str, ReportedSplit],
    training: Mapping[str, str] | None,
) -> Path:
    """Write ``report.html`` of a run's evaluations. Raises OSError on failure.

    Args:
        folder: folder of the run.
        cfg: its config.
        splits: results by split.
        training: :func:`training_facts` of a run that trains; its curves are on the page. None for
            an evaluation, which has curves and facts of the run in whose folder the weights are.
    """
    path = folder / REPORT
    key = registry.get_model_class(cfg.model.arch).weights_key
    weights = getattr(cfg.model, key, None)
    log = (folder if training or not weights else Path(weights).parent) / LINES
    if training is None:
        training = _facts_of_weights(weights, f"model.{key}") if weights else {}
    write_report(
        path,
        report_content(
            title=folder.name,
            facts={**_facts(cfg, weights or ""), **training},
            splits=splits,
            log=log,
            metric=cfg.run.metric or "",
        ),
    )
    return path


def training_facts(
    plan: TrainingPlan, model: TrainableModel, *, steps: int, best: int | None, seconds: float
) -> dict[str, str]:
    """Facts of a training run for the head of its page, by label.

    Args:
        plan: the run's plan.
        model: the trained model.
        steps: steps so far.
        best: step of the best weights; None for none.
        seconds: time so far.
    """
    trained, total = (
        sum(parameter.numel() for parameter in parameters)
        for parameters in (trained_parameters(model).values(), model.parameters())
    )
    of_best = "" if best is None else f", best weights of step {best:,}"
    return {
        "trained": f"{trained:,} of {total:,} parameters",
        "learning rate": f"{plan.run.init_lr:g}",
        "batch": f"{plan.examples_per_step:,.0f} {plan.noun} a step",
        "steps": f"{steps:,} of {plan.steps:,}{of_best}",
        "training took": duration(seconds),
    }


def _facts_of_weights(source: str, key: str) -> dict[str, str]:
    """The same as far as a file of trained weights tells; empty for another program's."""
    try:
        path = find_trained_weights(source, key)
        weights = TrainedWeights.load(path, key=key, tensors=False)
        trained = count_numbers(path)
    except (UserError, DamagedTensors):
        return {}
    run = weights.config.get("run")
    run = run if isinstance(run, Mapping) else {}
    facts = {
        "trained": f"{trained:,} parameters and buffers",
        "learning rate": run.get("init_lr"),
        "batch of a process": run.get("batch_size_train"),
        "steps": f"{weights.step:,}",
    }
    return {label: shortened(str(fact)) for label, fact in facts.items() if fact is not None}


def _facts(cfg: Config, weights: str) -> dict[str, str]:
    model: Any = cfg.model
    kind = getattr(model, "model_type", None)
    facts = {
        "task": cfg.run.task,
        "model": f"{model.arch}, {kind}" if kind else model.arch,
        "fusion": getattr(getattr(model, "fusion", None), "name", ""),
        "weights": weights,
        "seed": str(cfg.run.seed),
        "lavis_ext": __version__,
    }
    return {label: text for label, text in facts.items() if text}
