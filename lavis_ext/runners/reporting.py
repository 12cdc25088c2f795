"""What final evaluations leave in a run's folder besides figures: all scores, and the report."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lavis_ext.common.files import write_json
from lavis_ext.common.version import __version__
from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.evaluation.report.content import ReportedSplit, report_content
from lavis_ext.evaluation.report.page import write_report
from lavis_ext.runners.run_folder import LINES
from lavis_ext.tasks.base import Evaluation

REPORT = "report.html"


def write_scores(path: Path, evaluation: Evaluation) -> None:
    """Figures of a split with answers, with intervals and breakdowns; of others, nothing."""
    if evaluation.result is not None:
        write_json(path, asdict(evaluation.result.scores))


def write_run_report(
    folder: Path,
    cfg: Config,
    datasets: Mapping[str, GqaFusionDataset],
    evaluations: Mapping[str, Evaluation],
) -> Path:
    """``report.html`` of a run's final evaluations. Raises OSError if it can't be written.

    Curves are of this run, or of the run in whose folder the evaluated weights lie.
    """
    splits = {split: _split(datasets[split], each) for split, each in evaluations.items()}
    path = folder / REPORT
    write_report(
        path,
        report_content(
            title=folder.name,
            facts=_facts(cfg),
            splits=splits,
            log=_log(folder, cfg, datasets),
        ),
    )
    return path


def _split(dataset: GqaFusionDataset, evaluation: Evaluation) -> ReportedSplit:
    if evaluation.result is None:
        return ReportedSplit(evaluation.figures)
    shown = set(evaluation.result.shown)
    ids, texts = (dataset.table.columns[name].to_pylist() for name in ("question_id", "question"))
    return ReportedSplit(
        figures=evaluation.figures,
        result=evaluation.result,
        questions={name: text for name, text in zip(ids, texts, strict=True) if name in shown},
        images=dataset.images,
    )


def _facts(cfg: Config) -> dict[str, str]:
    model: Any = cfg.model
    facts = {
        "task": cfg.run.task,
        "model": f"{model.arch}, {model.model_type}" if model.model_type else model.arch,
        "fusion": getattr(getattr(model, "fusion", None), "name", ""),
        "weights": getattr(model, "fusion_weights", None) or "",
        "seed": str(cfg.run.seed),
        "lavis_ext": __version__,
    }
    return {label: text for label, text in facts.items() if text}


def _log(folder: Path, cfg: Config, datasets: Mapping[str, GqaFusionDataset]) -> Path:
    weights = getattr(cfg.model, "fusion_weights", None)
    return (Path(weights).parent if weights and "train" not in datasets else folder) / LINES
