"""GQA's metrics of one split, for a model that answers it again and again."""

from collections.abc import Iterator, Mapping
from functools import cached_property, partial

import numpy as np

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.question_table import QuestionTable
from lavis_ext.datasets.gqa.scene_graphs import SceneGraph, read_scene_graphs
from lavis_ext.datasets.gqa.scoring_files import ScoringFiles
from lavis_ext.evaluation.gqa.choices import AnswerChoices
from lavis_ext.evaluation.gqa.files import read_choices
from lavis_ext.evaluation.gqa.grounding import Attention, object_boxes
from lavis_ext.evaluation.gqa.inputs import covering, entailed_answers
from lavis_ext.evaluation.gqa.outcomes import Outcomes, judge
from lavis_ext.evaluation.gqa.questions import GqaQuestion, balanced_questions

NEEDING_CHOICES = ("validity", "plausibility")
UNREAD = "it reads more files, which is left for the end (task.full_metrics)"


class GqaScorer:
    """Scores answers to a table's questions. What it reads, it reads once and when it is needed.

    What a metric lacks is no error here: an evaluation may have taken hours. Such a metric is
    among the outcomes' ``not_computed``.

    Args:
        table: the questions that are answered. Those in the balanced subset that have an answer are
            scored; the others serve consistency.
        files: where choices and scene graphs would lie.
    """

    def __init__(self, table: QuestionTable, files: ScoringFiles) -> None:
        self.table = table.take(np.flatnonzero(table.codes("answer") >= 0))
        self._files = files

    @cached_property
    def questions(self) -> list[GqaQuestion]:
        """The questions that are scored; none where the answers aren't known.

        Raises UserError for a record of another form than GQA's.
        """
        return balanced_questions(self.table)

    @property
    def entailed(self) -> dict[str, str]:
        """Right answers by id to all that the questions entail; empty where some aren't known."""
        return self._entailed[0] or {}

    @property
    def boxes(self) -> dict[str, Attention]:
        """For grounding, boxes [K, 4] of the objects that each question names, by id.

        Empty where they aren't known; ``outcomes`` then says why.
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
            grounding: scores by id where the model has attention maps.
            no_grounding: why it has none.
            read_files: whether to compute what needs a file read anew each time, the choices.
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
        return entailed_answers(
            self.table,
            self.questions,
            "the questions that were answered don't include",
            "answer all questions of the split (datasets.gqa_fusion.subset: all)",
        )

    @cached_property
    def _boxes(self) -> tuple[dict[str, Attention], str]:
        """Boxes by question, or why there are none."""
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
    """Raises KeyError for an image or an object that isn't in the scene graphs."""
    by_image = {image: object_boxes(graphs[image]) for image in {q.image_id for q in questions}}
    return {
        question.id: np.array(
            [by_image[question.image_id][name] for name in question.objects or ()]
        ).reshape(-1, 4)
        for question in questions
    }
