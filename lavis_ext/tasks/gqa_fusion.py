"""The task ``gqa_fusion``: what LAVIS's programs ask a task for, handed on to the parts."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import nn

from lavis_ext import distributed
from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa import FusionSamples, GqaFusionDataset
from lavis_ext.datasets.vocabulary import AnswerVocabulary
from lavis_ext.door import registry
from lavis_ext.errors import UserError
from lavis_ext.evaluation.baselines import baseline_answers
from lavis_ext.evaluation.figures import ACCURACY, figures_of, reasons_of
from lavis_ext.evaluation.gqa.outcomes import Outcomes
from lavis_ext.evaluation.gqa.scorer import NEEDING_CHOICES, GqaScorer
from lavis_ext.evaluation.gqa.scores import GqaScores, score
from lavis_ext.evaluation.result import SplitResult, Trace
from lavis_ext.tasks.base import Evaluation, SummingTask, averages, only_data_set


@registry.register_task("gqa_fusion")
class GqaFusionTask(SummingTask):
    """Trains a fusion network, and judges it by the answers and matches it gives."""

    takes_features = True
    no_grounding: ClassVar[str] = (
        "the answer head has no attention map; the pipeline has heat maps "
        "(run.task: gqa_reading_comprehension_fusion)"
    )
    """Why there are no attention maps; empty where there are some."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.vocabulary: AnswerVocabulary | None = None
        self._scorers: dict[GqaFusionDataset, GqaScorer] = {}
        self._baselines: dict[GqaFusionDataset, dict[str, GqaScores]] = {}
        self._final = False
        self._shown: frozenset[str] = frozenset()

    def build_datasets(self, cfg: Config, splits: list[str]) -> dict[str, GqaFusionDataset]:
        """Data sets by split, and the vocabulary if the training split is among them."""
        name = only_data_set(cfg)
        _refuse_misfitting_images(cfg, name)
        objectives = {
            registry.get_objective_class(each): options
            for each, options in cfg.model.objectives.items()
        }
        builder = registry.get_builder_class(name)(cfg.datasets[name])
        datasets: dict[str, GqaFusionDataset] = builder.build_datasets(
            cfg.run.sizes(splits),
            seed=cfg.run.seed,
            with_mismatched=any(objective.needs_mismatched for objective in objectives),
        )
        sizes = [o.vocabulary_size for each, o in objectives.items() if each.needs_vocabulary]
        if "train" in splits and sizes:
            # Of the whole split: a sample of it would leave the answer head without most classes.
            self.vocabulary = AnswerVocabulary.from_table(builder.read_split("train"), max(sizes))
        return datasets

    def metrics(self, model: Any, dataset: GqaFusionDataset) -> dict[str, str | None]:
        """Metrics of validations of this model on this split: None, or why one isn't computed."""
        named: dict[str, str | None] = dict.fromkeys(model.figures)
        return named | (self._answers_metrics(dataset) if ACCURACY in named else {})

    def _answers_metrics(self, dataset: GqaFusionDataset) -> dict[str, str | None]:
        """What the right answers would get is what can be computed."""
        scorer = self.scorer(dataset)
        if not scorer.questions:
            return {ACCURACY: "no question that is scored has a known answer"}
        right = {question.id: question.answer for question in scorer.questions}
        right |= scorer.entailed
        grounding = None if self.no_grounding else dict.fromkeys(scorer.boxes, 1.0)
        outcomes = self._outcomes(scorer, right, grounding)
        return {
            **dict.fromkeys(figures_of(score(outcomes, resamples=0))),
            **reasons_of(outcomes.not_computed),
        }

    def scorer(self, dataset: GqaFusionDataset) -> GqaScorer:
        """GQA's metrics of a data set; its questions are read once."""
        if dataset not in self._scorers:
            self._scorers[dataset] = GqaScorer(dataset.table, dataset.files)
        return self._scorers[dataset]

    def build_model(self, cfg: Config, *, load_weights: bool = True) -> nn.Module:
        """The model, with the vocabulary of the data sets built before."""
        model: nn.Module = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, self.vocabulary, load_weights=load_weights
        )
        return model

    def valid_step(self, model: Any, samples: FusionSamples) -> dict[str, Any]:
        """``report`` and ``count`` of a batch, and ``predictions`` by question id."""
        report, answers = model.evaluate(samples)
        asked = samples["question_id"] if answers else []
        return {
            "report": report,
            "count": len(samples["text_input"]),
            "predictions": dict(zip(asked, answers or [], strict=True)),
        }

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Choose what to keep: of a ``final`` evaluation, the questions that the report shows."""
        self._final = bool(kwargs.get("final"))
        run = self.config.run
        ids = [question.id for question in self.scorer(dataset).questions]
        size = run.report_examples if self._final and run.report else 0
        # The same questions whatever the number of processes, and before anything is answered.
        chosen = np.random.default_rng(run.seed).permutation(len(ids))[:size]
        self._shown = frozenset(ids[place] for place in chosen)

    def after_evaluation(
        self, val_result: dict[str, Any], dataset: GqaFusionDataset, model: Any
    ) -> Evaluation:
        """Metrics over all processes' shares. Entered by every process."""
        means, count = averages(val_result, model.device)
        predictions = dict(distributed.gather(list(val_result["predictions"].items())))
        grounding = dict(distributed.gather(list(val_result["grounding"].items())))
        traces = dict(distributed.gather(list(val_result["traces"].items())))
        outside = means.pop("answer_outside_vocabulary", None)
        if outside is not None:
            means["answers_outside_vocabulary"] = outside * count
        result = None
        if predictions and distributed.is_main_process() and self.scorer(dataset).questions:
            result = self._result(dataset, model, predictions, grounding, traces)
        figures, reasons = distributed.broadcast(_figures_and_reasons(result))
        # By the answers' text, which covers answers that the vocabulary lacks as well.
        figures |= {name: value for name, value in means.items() if name not in figures}
        return Evaluation(figures, predictions, reasons, result)

    def _result(
        self,
        dataset: GqaFusionDataset,
        model: Any,
        predictions: Mapping[str, str],
        grounding: Mapping[str, float],
        traces: Mapping[str, Trace],
    ) -> SplitResult:
        run = self.config.run
        scorer = self.scorer(dataset)
        if dataset not in self._baselines and model.vocabulary is not None:
            self._baselines[dataset] = {
                name: score(scorer.outcomes(guesses, read_files=False), resamples=0)
                for name, guesses in baseline_answers(scorer.table, model.vocabulary).items()
            }
        given = None if self.no_grounding else grounding
        outcomes = self._outcomes(scorer, predictions, given)
        return SplitResult(
            outcomes=outcomes,
            scores=score(outcomes, run.resamples if self._final else 0, run.seed),
            baselines=self._baselines.get(dataset, {}),
            shown=[q.id for q in scorer.questions if q.id in self._shown],
            traces=traces,
        )

    def _outcomes(
        self,
        scorer: GqaScorer,
        predictions: Mapping[str, str],
        grounding: Mapping[str, float] | None,
    ) -> Outcomes:
        run = self.config.run
        always = run.full_metrics == "always" or run.metric in NEEDING_CHOICES
        return scorer.outcomes(
            predictions,
            grounding=grounding,
            no_grounding=self.no_grounding,
            read_files=self._final or always,
        )


def _figures_and_reasons(result: SplitResult | None) -> tuple[dict[str, float], dict[str, str]]:
    if result is None:
        return {}, {}
    baselines = {
        f"baseline_{name}": scores.metrics["accuracy"].value
        for name, scores in result.baselines.items()
    }
    return figures_of(result.scores) | baselines, reasons_of(result.outcomes.not_computed)


def _refuse_misfitting_images(cfg: Config, name: str) -> None:
    """Images of another size than the model's would only be noticed in the first batch."""
    wanted = {
        "grid_size": cfg.model.blip.image_size,
        "segmentation_size": cfg.model.efficient_sam.image_size,
    }
    for mode in ("train", "eval"):
        processor = getattr(cfg.datasets[name].vis_processor, mode)
        for option, side in wanted.items():
            found = getattr(processor, option, side)
            if found != side:
                raise UserError(
                    f"datasets.{name}.vis_processor.{mode}.{option} is {found}, but the model's "
                    f"encoder is built for {side} pixels; leave the key out, or change both."
                )
