"""The page that final evaluations leave in a run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_ext.common.version import __version__
from lavis_ext.config.loader import Config
from lavis_ext.evaluation.report.content import ReportedSplit, report_content
from lavis_ext.evaluation.report.page import write_report
from lavis_ext.registry import registry
from lavis_ext.runners.run_folder import LINES

REPORT = "report.html"


def write_run_report(
    folder: Path, cfg: Config, splits: Mapping[str, ReportedSplit], trained: bool
) -> Path:
    """``report.html`` of a run's final evaluations. Raises OSError if it can't be written.

    Curves are of this run where it ``trained``, else of the run in whose folder the evaluated
    weights lie.
    """
    path = folder / REPORT
    key = registry.get_model_class(cfg.model.arch).weights_key
    weights = getattr(cfg.model, key, None)
    log = (folder if trained or not weights else Path(weights).parent) / LINES
    write_report(
        path,
        report_content(title=folder.name, facts=_facts(cfg, weights or ""), splits=splits, log=log),
    )
    return path


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
