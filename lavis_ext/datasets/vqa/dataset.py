"""Data sets of questions with answers of several people."""

from enum import Enum
from typing import Any

from lavis_ext.datasets.questions.dataset import QuestionDataset


class Benchmark(Enum):
    """Benchmark whose rules score the answers and define the results file."""

    VQA = "vqa"
    AOKVQA = "aokvqa"
    VIZWIZ = "vizwiz"
    OWN = "own"


class VqaDataset(QuestionDataset):
    """Questions of one split, with a benchmark's rules.

    Args:
        benchmark: benchmark whose rules apply.
        **parts: arguments of :class:`QuestionDataset`.
    """

    def __init__(self, *, benchmark: Benchmark, **parts: Any) -> None:
        super().__init__(**parts)
        self.benchmark = benchmark
