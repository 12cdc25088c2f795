"""The contract of a task: data and model of a run, one step, one evaluation, the report."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import write_json
from lavis_ext.common.metrics import Metric, by_name
from lavis_ext.config.renamed import OldKey
from lavis_ext.evaluation.report.content import ReportedSplit
from lavis_ext.models.base import StepOutput, TrainableModel, total_loss
from lavis_ext.registry import BaseTask, registry

Datasets = dict[str, Any]
"""Data sets by split. Of a run with several data sets, see ``datasets/mixed.py``."""


@dataclass
class TaskConfig:
    """The section ``task``. A task without options of its own has none."""


@dataclass(frozen=True)
class Splits:
    """The roles of a data set's splits, where ``run`` doesn't name others."""

    train: Sequence[str] = ("train",)
    valid: Sequence[str] = ("val",)
    test: Sequence[str] = ("test",)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, the same in every process but for ``scores`` and ``details``.

    Attributes:
        metrics: values by name.
        predictions: by example id; empty for a model that gives none.
        not_computed: why metrics are missing, by name.
        scores: what ``SPLIT_scores.json`` holds, in the main process; None for no such file.
        details: what the task's own report is made of, in the main process.
    """

    metrics: dict[str, float]
    predictions: dict[str, Any] = field(default_factory=dict)
    not_computed: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Any] | None = None
    details: Any = None


@dataclass
class Totals:
    """Sums over this process's share of an evaluation.

    Attributes:
        sums: of what is averaged, by name.
        count: examples.
        by_id: what steps give by example id (``predictions`` and what else a task asks for).
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    by_id: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalStep:
    """What ``valid_step`` gives for a batch: sums, count, and values by example id."""

    report: Mapping[str, Tensor]
    count: int
    by_id: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Task(BaseTask):
    """Register a subclass with LAVIS's ``registry.register_task`` and name it in ``run.task``.

    This one trains and evaluates any :class:`TrainableModel` by the sums that it reports.

    Class attributes:
        Config: the section ``task``.
        splits: the roles of splits.
        default_metric: selects the best weights where ``run.metric`` is null.
        takes_features: whether stored features can stand in place of images.
        OLD_KEYS: renamed keys of configs.
    """

    Config: ClassVar[type[Any]] = TaskConfig
    splits: ClassVar[Splits] = Splits()
    default_metric: ClassVar[str] = "loss"
    takes_features: ClassVar[bool] = True
    OLD_KEYS: ClassVar[Sequence[OldKey]] = ()

    def __init__(self, config: Any) -> None:
        """``config`` is the run's; ``config.task`` are the task's own options."""
        super().__init__()
        self.config = config

    @classmethod
    def setup_task(cls, cfg: Any) -> "Task":
        """The task of a run. Raises UserError for stored features that it can't use."""
        if cfg.run.features is not None and not cls.takes_features:
            raise UserError(
                f"run.features: the task {cfg.run.task} needs the images themselves; leave the "
                "section out."
            )
        return cls(cfg)

    def build_datasets(self, cfg: Any, splits: Sequence[str]) -> dict[str, Datasets]:
        """Data sets by name, then by split, as in LAVIS."""
        datasets = {}
        for name, section in cfg.datasets.items():
            builder = registry.get_builder_class(name)(section)
            datasets[name] = builder.build_datasets(
                cfg.run.sizes(splits), seed=cfg.run.seed, **self.build_options(cfg)
            )
            self.built(builder, cfg, splits)
        return datasets

    def build_options(self, cfg: Any) -> dict[str, Any]:
        """Further arguments of the builders' ``build_datasets``."""
        return {}

    def built(self, builder: Any, cfg: Any, splits: Sequence[str]) -> None:
        """Called with each builder after its data sets, for facts such as a vocabulary."""

    def build_model(self, cfg: Any, *, load_weights: bool = True) -> TrainableModel:
        """The model that the config names."""
        model: TrainableModel = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, load_weights=load_weights
        )
        return model

    def metrics(self, model: TrainableModel) -> list[Metric]:
        """The metrics that this task can report of this model."""
        return [Metric("loss", better="min"), *model.metrics]

    def not_computed(self, model: TrainableModel, dataset: Any) -> dict[str, str]:
        """Why validations of this split lack some of ``metrics``, by name."""
        return {}

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Called before each evaluation; ``final`` says that it is the last of its split."""

    def train_step(self, model: Any, samples: Any) -> StepOutput:
        """The model's losses, sums and count of a batch. ``model`` may be wrapped for DDP."""
        output: StepOutput = model(samples)
        return output

    def valid_step(self, model: Any, samples: Any) -> EvalStep:
        """Sums, count and predictions of a batch."""
        output: StepOutput = model(samples)
        return EvalStep({"loss": total_loss(output).detach(), **output.report}, output.examples)

    def evaluation(
        self, model: Any, data_loader: Iterable[Any], cuda_enabled: bool = True
    ) -> Totals:
        """``valid_step`` over a loader, summed."""
        totals = Totals()
        for samples in data_loader:
            step = self.valid_step(model, samples)
            for name, value in step.report.items():
                totals.sums[name] = totals.sums.get(name, torch.zeros_like(value)) + value
            for name, values in step.by_id.items():
                totals.by_id.setdefault(name, {}).update(values)
            totals.count += step.count
        return totals

    def after_evaluation(self, val_result: Totals, dataset: Any, model: Any) -> Evaluation:
        """Metrics over all processes' shares. Entered by every process."""
        metrics, _ = averages(val_result, model.device)
        predictions = gathered(val_result, "predictions")
        return Evaluation(metrics, predictions)

    def write_predictions(self, path: Path, predictions: Mapping[str, Any]) -> None:
        """Write a split's predictions; by default a list of ``{"id", "prediction"}``."""
        write_json(path, [{"id": name, "prediction": each} for name, each in predictions.items()])

    def headline(self, split: str, metrics: Mapping[str, float]) -> str:
        """A sentence for the end of an evaluation; empty for none."""
        return ""

    def reported(
        self, split: str, dataset: Any, model: Any, evaluation: Evaluation
    ) -> ReportedSplit:
        """What ``report.html`` shows of a split."""
        return ReportedSplit(evaluation.metrics, by_name(self.metrics(model)))


def averages(totals: Totals, device: torch.device) -> tuple[dict[str, float], float]:
    """Means over all processes of what was summed, and the number of examples."""
    names = sorted(totals.sums)
    sums = torch.stack(
        [torch.tensor(float(totals.count)).double()]
        + [totals.sums[name].detach().cpu().double() for name in names]
    )
    count, *found = distributed.sum_over_processes(sums.to(device)).tolist()
    return {name: value / count for name, value in zip(names, found, strict=True)}, count


def gathered(totals: Totals, name: str) -> dict[str, Any]:
    """What steps gave by example id, of all processes."""
    return dict(distributed.gather(list(totals.by_id.get(name, {}).items())))
