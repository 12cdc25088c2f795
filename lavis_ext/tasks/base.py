"""Interface of tasks: a run's data and model, its steps, evaluations and report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lavis_ext import distributed
from lavis_ext.checkpoints.needs import Need, weights_needed
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import write_json
from lavis_ext.common.metrics import LOSS, Metric, by_name
from lavis_ext.config.renamed import OldKey
from lavis_ext.evaluation.by_image import ByImage
from lavis_ext.evaluation.report.content import ReportedSplit
from lavis_ext.models.base import StepOutput, TrainableModel, total_loss
from lavis_ext.registry import BaseTask, registry

Datasets = dict[str, Any]
"""Data sets by split. For runs with several data sets, see ``datasets/mixed.py``."""


@dataclass
class TaskConfig:
    """The section ``task``, empty by default."""


@dataclass(frozen=True)
class Splits:
    """Default roles of a data set's splits."""

    train: Sequence[str] = ("train",)
    valid: Sequence[str] = ("val",)
    test: Sequence[str] = ("test",)


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation, equal in all processes except ``scores`` and ``details``.

    Attributes:
        metrics: metric values by name.
        predictions: predictions by example id; may be empty.
        not_computed: reasons for missing metrics by name.
        scores: content of ``SPLIT_scores.json``, in the main process; None for no file.
        details: data for the task's report, in the main process.
    """

    metrics: dict[str, float]
    predictions: dict[str, Any] = field(default_factory=dict)
    not_computed: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Any] | None = None
    details: Any = None


@dataclass
class Totals:
    """Totals of this process's share of an evaluation.

    Attributes:
        sums: sums of averaged metrics by name.
        count: number of examples.
        by_id: values by example id (``predictions`` and others of the task), by name.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    by_id: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, step: "EvalStep") -> None:
        """Add the results of a batch."""
        for name, value in step.report.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        for name, values in step.by_id.items():
            self.by_id.setdefault(name, {}).update(values)
        self.count += step.count

    def emptied(self) -> "Totals":
        """Totals of zero examples with the same names."""
        sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}
        return Totals(sums, 0, {name: {} for name in self.by_id})


@dataclass(frozen=True)
class EvalStep:
    """Result of ``valid_step``: sums, count, and values by example id.

    Values are JSON, so that they can be saved, and an interrupted evaluation continued.
    """

    report: Mapping[str, Tensor]
    count: int
    by_id: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Task(BaseTask):
    """Base of tasks. Register a subclass with LAVIS's ``registry.register_task``.

    The base class trains any :class:`TrainableModel` and evaluates it by its reported sums.

    Class attributes:
        Config: the section ``task``.
        splits: default roles of splits.
        default_metric: metric that selects the best weights if ``run.metric`` is null.
        answering: whether it loads a model's parts for answering.
        takes_features: whether stored features can replace images.
        OLD_KEYS: renamed keys of configs.
    """

    Config: ClassVar[type[Any]] = TaskConfig
    splits: ClassVar[Splits] = Splits()
    default_metric: ClassVar[str] = LOSS
    takes_features: ClassVar[bool] = True
    OLD_KEYS: ClassVar[Sequence[OldKey]] = ()
    answering: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        """``config`` is the run's config; ``config.task`` has the task's options."""
        super().__init__()
        self.config = config
        self.made_up: frozenset[str] = frozenset()
        """Names of the data sets that are made up, because a dry run goes without them."""

    @classmethod
    def setup_task(cls, cfg: Any) -> "Task":
        """Build a run's task. Raises UserError for stored features if the task needs images."""
        if cfg.run.features is not None and not cls.takes_features:
            raise UserError(
                f"run.features: the task {cfg.run.task} needs the images themselves; remove the "
                "section out."
            )
        return cls(cfg)

    def build_datasets(self, cfg: Any, splits: Sequence[str]) -> dict[str, Datasets]:
        """Build data sets by name, then by split, as in LAVIS."""
        datasets = {}
        for name, section in cfg.datasets.items():
            builder = registry.get_builder_class(name)(section)
            if name in self.made_up:
                builder.make_up(splits)
            datasets[name] = builder.build_datasets(
                cfg.run.sizes(splits), seed=cfg.run.seed, **self.build_options(cfg)
            )
            self.built(builder, cfg, splits)
        return datasets

    @classmethod
    def needs(cls, cfg: Any, splits: Sequence[str]) -> list[Need]:
        """All files needed by a run of ``cfg`` and its evaluation, existing or missing."""
        model = registry.get_model_class(cfg.model.arch)
        later = () if cls.answering else model.parts_to_answer(cfg.model)
        data = [
            need
            for name, section in cfg.datasets.items()
            for need in registry.get_builder_class(name)(section).needs(splits)
        ]
        return [*weights_needed(cfg.model, "model", later), *data]

    def build_options(self, cfg: Any) -> dict[str, Any]:
        """Additional arguments of the builders' ``build_datasets``."""
        return {}

    def built(self, builder: Any, cfg: Any, splits: Sequence[str]) -> None:
        """Hook called after a builder's data sets are built, for facts such as a vocabulary."""

    def build_model(self, cfg: Any, *, load_weights: bool = True) -> TrainableModel:
        """Build the model of the config."""
        model: TrainableModel = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, load_weights=load_weights
        )
        return model

    def metrics(self, model: TrainableModel) -> list[Metric]:
        """All metrics that this task may report for ``model``."""
        return [Metric(LOSS, better="min"), *model.metrics]

    def not_computed(self, model: TrainableModel, dataset: Any) -> dict[str, str]:
        """Reasons why validations of this split lack some of ``metrics``, by name."""
        return {}

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Hook called before each evaluation; ``final`` marks the last one of a split."""

    def train_step(self, model: Any, samples: Any) -> StepOutput:
        """Losses, sums and count of a batch. ``model`` may be wrapped in DDP."""
        output: StepOutput = model(samples)
        return output

    def valid_step(self, model: Any, samples: Any) -> EvalStep:
        """Sums, count and predictions of a batch."""
        output: StepOutput = model(samples)
        return EvalStep({LOSS: total_loss(output).detach(), **output.report}, output.examples)

    def evaluation(
        self,
        model: Any,
        data_loader: Iterable[Any],
        cuda_enabled: bool = True,
        *,
        earlier: Iterable[EvalStep] = (),
        save: Callable[[EvalStep, Any], None] | None = None,
    ) -> Totals:
        """Sum ``valid_step`` over a loader.

        Args:
            model: the model.
            data_loader: the batches.
            cuda_enabled: an argument of LAVIS; ignored, as batches are on the device already.
            earlier: results of an interrupted evaluation, which are summed first.
            save: called with the result of each batch and its samples.
        """
        totals = Totals()
        for step in earlier:
            totals.add(step)
        for samples in data_loader:
            step = self.valid_step(model, samples)
            totals.add(step)
            if save is not None:
                save(step, samples)
        return totals

    def after_evaluation(self, val_result: Totals, dataset: Any, model: Any) -> Evaluation:
        """Metrics over all processes' shares. Called by every process."""
        metrics, _ = averages(val_result, model.device)
        predictions = gathered(val_result, "predictions")
        return Evaluation(metrics, predictions)

    def write_predictions(self, path: Path, predictions: Mapping[str, Any]) -> None:
        """Write a split's predictions; by default a list of ``{"id", "prediction"}``."""
        write_json(path, [{"id": name, "prediction": each} for name, each in predictions.items()])

    def by_image(self, dataset: Any, evaluation: Evaluation) -> ByImage | None:
        """Metrics that are means over examples, summed by image, for comparing runs.

        None, the default, if the task doesn't know them; a comparison then is over seeds only.
        """
        return None

    def headline(self, split: str, metrics: Mapping[str, float]) -> str:
        """One-sentence summary of an evaluation; empty for none."""
        return ""

    def reported(
        self, split: str, dataset: Any, model: Any, evaluation: Evaluation
    ) -> ReportedSplit:
        """Content of a split in ``report.html``."""
        return ReportedSplit(evaluation.metrics, by_name(self.metrics(model)))


def averages(totals: Totals, device: torch.device) -> tuple[dict[str, float], float]:
    """Means over all processes' examples, and the number of examples."""
    names = sorted(totals.sums)
    sums = torch.stack(
        [torch.tensor(float(totals.count)).double()]
        + [totals.sums[name].detach().cpu().double() for name in names]
    )
    count, *found = distributed.sum_over_processes(sums.to(device)).tolist()
    return {name: value / count for name, value in zip(names, found, strict=True)}, count


def gathered(totals: Totals, name: str) -> dict[str, Any]:
    """Values ``name`` by example id from all processes."""
    return dict(distributed.gather(list(totals.by_id.get(name, {}).items())))
