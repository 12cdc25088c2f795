"""Base of question tasks: data, answer vocabulary, answers of head and pipeline."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lavis_ext.common.errors import UserError, listed
from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.datasets.questions.builder import QuestionBuilder
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.evaluation.bootstrap import FEWEST_RESAMPLES
from lavis_ext.evaluation.question_only import QuestionOnly, question_only
from lavis_ext.registry import registry
from lavis_ext.tasks.base import Datasets, EvalStep, Task, TaskConfig, Totals, averages

log = logging.getLogger(__name__)

HEAD_ACCURACY = "answer_accuracy"
"""The answer head's metric per batch: answers of the right class."""
HEAD_OUTSIDE = "answer_outside_vocabulary"
"""The answer head's metric per batch; evaluations report the number of such answers."""
OUTSIDE = "answers_outside_vocabulary"
MIN_COUNT = "vocabulary_min_count"
"""Option of some objectives with a vocabulary."""
CAPTION_AVERAGES = (
    Metric("captions", "per question", better=None),
    Metric("captions_repeated", "per question", better="min"),
    Metric("questions_short_of_captions", "share", better="min"),
)
HEAT_AVERAGES = (
    Metric("points", "per question", better=None),
    Metric("matching", "share", better=None),
)


@dataclass
class QuestionTaskConfig(TaskConfig):
    """Options of tasks that score answers to questions."""

    resamples: int = option(
        1000,
        "Bootstrap resamples for the final metrics' intervals; 0 for no intervals.",
        at_least=0,
    )
    report_examples: int = option(
        500, "Questions of each split in the report.", at_least=0, at_most=5000
    )
    blind_baseline: bool = option(
        True,
        "Compare final scores with an answerer that reads only the questions. It is trained on the "
        "training split in about a minute on one core, once for all runs on the same questions.",
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for too few resamples for an interval."""
        if 0 < self.resamples < FEWEST_RESAMPLES:
            raise UserError(
                f"{where}.resamples is {self.resamples}; it must be 0, for no intervals, or at "
                f"least {FEWEST_RESAMPLES}."
            )


class QuestionTask(Task):
    """Base of tasks with questions, answers and a model built for them.

    Class attributes:
        answering: whether the model needs captioner and reader.
    """

    Config = QuestionTaskConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vocabulary: AnswerVocabulary | None = None
        self._training: list[QuestionTable] = []
        self._built: dict[str, Datasets] = {}
        self._builders: list[QuestionBuilder] = []

    @classmethod
    def setup_task(cls, cfg: Any) -> "Task":
        """Build a run's task. Raises UserError for training on an evaluation split."""
        if cfg.run.train_splits is not None and [*cfg.run.train_splits] != ["train"]:
            raise UserError(
                "run.train_splits must be [train]: the other splits are for evaluation."
            )
        return super().setup_task(cfg)

    def build_datasets(self, cfg: Any, splits: Sequence[str]) -> dict[str, Datasets]:
        """Build data sets by name, then by split; with ``train``, also the vocabulary."""
        self.vocabulary = None
        self._training = []
        self._builders = []
        self._built = super().build_datasets(cfg, splits)
        if self._training:
            self.vocabulary = self._vocabulary_of(cfg)
        return self._built

    def build_options(self, cfg: Any) -> dict[str, Any]:
        """What the objectives need besides questions, and the encoders' image sizes."""
        return {
            "with_mismatched": any(each.needs_mismatched for each in _objectives(cfg)),
            "with_statements": any(each.needs_statements for each in _objectives(cfg)),
            "image_sizes": {name: each.image_size for name, each in cfg.model.streams.items()},
        }

    def built(self, builder: Any, cfg: Any, splits: Sequence[str]) -> None:
        """Store the training questions, the source of the answer vocabulary."""
        if isinstance(builder, QuestionBuilder):
            self._builders.append(builder)
        needed = any(each.needs_vocabulary for each in _objectives(cfg))
        if "train" in splits and needed and isinstance(builder, QuestionBuilder):
            # From the whole split: a sample would lack most classes of the answer head.
            table = builder.read_split("train")
            if not table.values("answer"):
                raise UserError(
                    f"{builder.key()}: none of its {len(table):,} training questions has an answer,"
                    " which the objective needs. Set files with answers, such as the questions' "
                    "annotations."
                )
            self._training.append(table)

    def question_only(self) -> tuple[QuestionOnly | None, str]:
        """A question-only answerer trained on the data sets' training splits, on first use.

        None if there is none, with the reason; without one if ``blind_baseline`` is off.
        """
        if not self.config.task.blind_baseline:
            return None, ""
        if self.made_up:
            return None, "the questions are made up"
        try:
            tables = [builder.read_split("train") for builder in self._builders]
        except UserError as error:
            return None, f"a question-only answerer needs the training questions: {error}"
        if not any((table.codes("answer") >= 0).any() for table in tables):
            return None, "no training question has an answer"
        return question_only(tables), ""

    def build_model(self, cfg: Any, *, load_weights: bool = True) -> Any:
        """Build the model with the vocabulary of the data sets built before.

        Raises UserError for a data set without any answer in the model's vocabulary.
        """
        answering = {"answering": True} if self.answering else {}
        model = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, load_weights=load_weights, vocabulary=self.vocabulary, **answering
        )
        chosen = any(each.needs_vocabulary for each in _objectives(cfg))
        if chosen and not self.answering and model.vocabulary is not None:
            self._check_known_answers(model.vocabulary)
        return model

    def valid_step(self, model: Any, samples: Any) -> EvalStep:
        """Sums and count of a batch, and the head's answers by question id."""
        report, answers = model.evaluate(samples)
        asked = samples["ids"] if answers else []
        return EvalStep(
            report,
            len(samples["text_input"]),
            {"predictions": dict(zip(asked, answers or [], strict=True))},
        )

    def predicts(self) -> bool:
        """Whether an objective answers, so that validations score answers."""
        return any(objective.predicts for objective in _objectives(self.config))

    def means(self, totals: Totals, model: Any) -> dict[str, float]:
        """Averages over all processes, with the number of answers outside the vocabulary."""
        means, count = averages(totals, model.device)
        outside = means.pop(HEAD_OUTSIDE, None)
        if outside is not None:
            means[OUTSIDE] = outside * count
            # The head's accuracy is by class and ignores answers outside the vocabulary.
            del means[HEAD_ACCURACY]
        return means

    def _vocabulary_of(self, cfg: Any) -> AnswerVocabulary:
        """The most frequent training answers of all data sets, up to the objective's size."""
        options = [each for cls, each in _objectives(cfg).items() if cls.needs_vocabulary]
        size = max(each.vocabulary_size for each in options)
        least = min(
            [each.vocabulary_min_count for each in options if hasattr(each, MIN_COUNT)], default=1
        )
        vocabulary = AnswerVocabulary.from_tables(self._training, size, min_count=least)
        counts = [vocabulary.coverage(table) for table in self._training]
        known, answered = (sum(part) for part in zip(*counts, strict=True))
        if not len(vocabulary):
            raise UserError(
                f"No training answer occurs {least} times "
                f"(model.objectives.*.{MIN_COUNT}), so the answer vocabulary is empty."
            )
        log.info(
            "Answer vocabulary: %d answers; %d of %d training answers (%.1f %%) are outside of it.",
            len(vocabulary),
            answered - known,
            answered,
            100 * (answered - known) / answered,
        )
        return vocabulary

    def _check_known_answers(self, vocabulary: AnswerVocabulary) -> None:
        for name, splits in self._built.items():
            for split, dataset in splits.items():
                table = getattr(dataset, "table", None)
                if table is None:
                    continue
                known, answered = vocabulary.coverage(table)
                if answered and not known:
                    raise UserError(
                        f"datasets.{name}: none of the {answered:,} answers of split '{split}' "
                        f"({listed(table.values('answer'))}) is among the {len(vocabulary):,} that "
                        f"the model chooses from ({listed(vocabulary.answers)}). Train on answers "
                        "of this kind, or use the pipeline's free answers."
                    )


def pipeline_averages(model: Any) -> list[Metric]:
    """Averages of the pipeline over questions, such as captions found or dropped as repeated."""
    return [*(CAPTION_AVERAGES if model.config.captions_wanted else ()), *HEAT_AVERAGES]


def pipeline_sums(model: Any, output: Any) -> dict[str, torch.Tensor]:
    """Sums over a batch of the values of ``pipeline_averages``."""
    wanted = model.config.captions_wanted
    found = {
        "points": float((output.labels == 1).sum()),
        "matching": float(output.matching.sum()),
    }
    if wanted:
        captions = [len(texts) for texts in output.captions]
        found |= {
            "captions": float(sum(captions)),
            "captions_repeated": float(sum(output.repeated)),
            "questions_short_of_captions": float(sum(count < wanted for count in captions)),
        }
    return {name: torch.tensor(value) for name, value in found.items()}


def _objectives(cfg: Any) -> dict[Any, Any]:
    """Classes of a model's objectives with their options."""
    return {
        registry.get_objective_class(name): options
        for name, options in cfg.model.objectives.items()
    }
