"""GQA's metrics of one split, for repeated evaluations."""

from collections.abc import Iterator, Mapping
from functools import cached_property, partial

import numpy as np

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.scene_graphs import SceneGraph, read_scene_graphs
from lavis_ext.datasets.gqa.scoring_files import ScoringFiles
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.evaluation.gqa.choices import AnswerChoices
from lavis_ext.evaluation.gqa.files import read_choices
from lavis_ext.evaluation.gqa.grounding import Attention, object_boxes
from lavis_ext.evaluation.gqa.inputs import covering, entailed_answers
from lavis_ext.evaluation.gqa.outcomes import Outcomes, judge
from lavis_ext.evaluation.gqa.questions import GqaQuestion, balanced_questions

NEEDING_CHOICES = ("validity", "plausibility")
UNREAD = "it needs more files, which are read only at the end (task.full_metrics)"


class GqaScorer:
    """Scores answers to a table's questions; files are read once, on first use.

    Missing inputs of a metric aren't errors, since an evaluation may have taken hours. They are
    listed in the outcomes' ``not_computed``.

    Args:
        table: answered questions. Those in the balanced subset with an answer are scored; the
            others are for consistency.
        files: paths of choices and scene graphs, which may be missing.
    """

    def __init__(self, table: QuestionTable, files: ScoringFiles) -> None:
        self.table = table.take(np.flatnonzero(table.codes("answer") >= 0))
        self._files = files

    @cached_property
    def questions(self) -> list[GqaQuestion]:
        """Scored questions; empty if the answers aren't known.

        Raises UserError for a record that isn't in GQA's format.
        """
        return balanced_questions(self.table)

    @property
    def entailed(self) -> dict[str, str]:
        """Correct answers to all entailed questions by id; empty if some are unknown."""
        return self._entailed[0] or {}

    @property
    def boxes(self) -> dict[str, Attention]:
        """Boxes [K, 4] of the objects named in each question, by id, for grounding.

        Empty if unknown; ``outcomes`` then has the reason.
        """
        return self._boxes[0]

    def outcomes(
        self,
        predictions: Mapping[str, str],
        *,
        grounding: Mapping[str, float] | None = None,
        no_grounding: str = "",
        read_files: bool = True,
    ) -> Outcomes:
        """Judge answers, by id, to all of the table's questions.

        Args:
            predictions: the answers.
            grounding: scores by id if the model has attention maps.
            no_grounding: reason for missing attention maps.
            read_files: whether to compute metrics that read the choices file, which isn't cached.
        """
        answers, reasons = self._entailed
        if grounding is None:
            reasons = {**reasons, "grounding": no_grounding}
        elif not self.boxes:
            reasons = {**reasons, "grounding": self._boxes[1]}
            grounding = None
        path = self._files.choices
        lacking = f"there is no choices file {path}" if not path.is_file() else UNREAD
        without = reasons | dict.fromkeys(NEEDING_CHOICES, lacking)
        judged = partial(judge, self.questions, predictions, answers=answers, grounding=grounding)
        if read_files and path.is_file():
            try:
                return judged(choices=self._choices(), reasons=reasons)
            except UserError as error:
                without |= dict.fromkeys(NEEDING_CHOICES, str(error))
        return judged(reasons=without)

    def _choices(self) -> Iterator[tuple[str, AnswerChoices]]:
        path = self._files.choices
        return covering(read_choices(path), path, self.questions, "choices")

    @cached_property
    def _entailed(self) -> tuple[dict[str, str] | None, dict[str, str]]:
        remedy = "answer all questions of the split (datasets.gqa_fusion.subset: all)"
        store = self.table.store
        if store is not None and len(self.table) < len(store):
            remedy = (
                f"they are a sample of {len(self.table):,} of the split's {len(store):,} "
                "(run.small_*_size, or missing images); answer the whole split, with "
                "datasets.gqa_fusion.subset: all"
            )
        return entailed_answers(
            self.table, self.questions, "the questions that were answered don't include", remedy
        )

    @cached_property
    def _boxes(self) -> tuple[dict[str, Attention], str]:
        """Boxes by question, or the reason for having none."""
        path = self._files.scene_graphs
        if all(question.objects is None for question in self.questions):
            return {}, "the questions have no annotations of the objects that they name"
        if not path.is_file():
            return {}, f"there are no scene graphs {path}"
        try:
            return _boxes_of(self.questions, read_scene_graphs(path)), ""
        except UserError as error:
            return {}, str(error)
        except KeyError as error:
            return {}, f"{path} has no image or object {error} that a question names"


def _boxes_of(
    questions: list[GqaQuestion], graphs: Mapping[str, SceneGraph]
) -> dict[str, Attention]:
    """Boxes by question. Raises KeyError for images or objects missing from the scene graphs."""
    by_image = {image: object_boxes(graphs[image]) for image in {q.image_id for q in questions}}
    return {
        question.id: np.array(
            [by_image[question.image_id][name] for name in question.objects or ()]
        ).reshape(-1, 4)
        for question in questions
    }
