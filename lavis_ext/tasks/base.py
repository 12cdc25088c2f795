"""What every task here does: one step, one evaluation, sums over all processes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.evaluation.result import SplitResult
from lavis_ext.registry import BaseTask, registry


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, the same in every process but for ``result``.

    Attributes:
        figures: metrics by name.
        predictions: answers by question id; empty for a model that gives none.
        not_computed: why metrics are missing, by name.
        result: all that is known of the answers, in the main process; None without answers, or
            where the right ones aren't known.
    """

    figures: dict[str, float]
    predictions: dict[str, str] = field(default_factory=dict)
    not_computed: Mapping[str, str] = field(default_factory=dict)
    result: SplitResult | None = None


class SummingTask(BaseTask):
    """A task whose model reports sums over its samples.

    A model's ``forward`` returns ``loss``, ``report`` (sums by name) and ``count`` (samples).
    """

    takes_features: ClassVar[bool] = False
    """Whether stored features can stand in place of the images."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def setup_task(cls, cfg: Config) -> "SummingTask":
        """The task of a run. Raises UserError for stored features that it can't use."""
        if cfg.run.features is not None and not cls.takes_features:
            raise UserError(
                f"run.features: the task {cfg.run.task} needs the images themselves; leave the "
                "section out."
            )
        return cls(cfg)

    def build_datasets(self, cfg: Config, splits: list[str]) -> dict[str, Any]:
        """Data sets by split. LAVIS keys them by name first; a run here has one."""
        name = only_data_set(cfg)
        builder = registry.get_builder_class(name)(cfg.datasets[name])
        datasets: dict[str, Any] = builder.build_datasets(cfg.run.sizes(splits), seed=cfg.run.seed)
        return datasets

    def build_model(self, cfg: Config, *, load_weights: bool = True) -> nn.Module:
        """The model that the config names."""
        model: nn.Module = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, load_weights=load_weights
        )
        return model

    def metrics(self, model: Any, dataset: Any) -> dict[str, str | None]:
        """Metrics of validations of this model on this split: None, or why one isn't computed."""
        return dict.fromkeys(model.figures)

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Told of each evaluation that comes; ``final`` says that it is the last of its split."""

    def train_step(self, model: nn.Module, samples: Any) -> dict[str, Any]:
        """The model's ``loss``, ``report`` and ``count`` of a batch."""
        output: dict[str, Any] = model(samples)
        return output

    def valid_step(self, model: Any, samples: Any) -> dict[str, Any]:
        """``report`` and ``count`` of a batch, and what there is ``BY_QUESTION``."""
        output: dict[str, Any] = model(samples)
        return output

    def evaluation(
        self, model: nn.Module, data_loader: Iterable[Any], cuda_enabled: bool = True
    ) -> dict[str, Any]:
        """``valid_step`` over a loader: the sums of its reports and counts, and ``BY_QUESTION``."""
        totals: dict[str, torch.Tensor] = {}
        by_question: dict[str, dict[str, Any]] = {name: {} for name in BY_QUESTION}
        count = 0
        for samples in data_loader:
            result = self.valid_step(model, samples)
            for name, value in result["report"].items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
            for name, values in by_question.items():
                values |= result.get(name, {})
            count += result["count"]
        return {"totals": totals, "count": count, **by_question}

    def after_evaluation(self, val_result: dict[str, Any], dataset: Any, model: Any) -> Evaluation:
        """Metrics over all processes' shares. Entered by every process."""
        return Evaluation(averages(val_result, model.device)[0])


BY_QUESTION = ("predictions", "grounding", "traces")
"""What steps give by question id: answers, scores of heat maps, and ``Trace``."""


def averages(val_result: dict[str, Any], device: torch.device) -> tuple[dict[str, float], float]:
    """Means over all processes of what ``evaluation`` summed, and the number of samples."""
    names = sorted(val_result["totals"])
    sums = torch.stack(
        [torch.tensor(float(val_result["count"])).double()]
        + [val_result["totals"][name].cpu().double() for name in names]
    )
    count, *totals = distributed.sum_over_processes(sums.to(device)).tolist()
    return {name: total / count for name, total in zip(names, totals, strict=True)}, count


def only_data_set(cfg: Config) -> str:
    """The name of the run's data set. Raises UserError where there are several."""
    if len(cfg.datasets) != 1:
        raise UserError(f"datasets: one is trained on at a time, not {len(cfg.datasets)}.")
    return next(iter(cfg.datasets))
