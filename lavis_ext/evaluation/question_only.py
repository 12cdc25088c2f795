"""A question-only answerer: the score that is possible without looking at the image.

Benchmarks report such "blind" models beside their scores (Goyal et al., "Making the V in VQA
Matter", 2017; the LSTM of Hudson and Manning, "GQA", 2019). This one is a linear classifier of the
mean embedding of a question's n-grams (fastText: Joulin et al., "Bag of Tricks for Efficient Text
Classification", 2017), which a CPU core trains in seconds.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from lavis_ext.common.files import parse_json, user_cache
from lavis_ext.common.progress import ProgressLine
from lavis_ext.datasets.image_files import Cache
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.questions.vocabulary import OUTSIDE

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of cached answerers; increase it with every change of the training or of the file."""
CACHE_BYTES = 10**9
ROWS_AT_ONCE = 4096
Codes: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """Settings of the training.

    Attributes:
        longest: words of the longest n-grams.
        min_count: training questions that an n-gram must occur in.
        grams, answers: maximum numbers of n-grams and of answers, the most frequent ones.
        width: width of the embedding.
        dropout: dropout on the mean embedding.
        learning_rate: of Adam, decaying linearly to 0.
        epochs: passes over the questions.
        batch: questions per step; more, if there would be more steps than ``steps``.
        steps: maximum number of steps.
        questions: maximum number of training questions, a random sample of them.
        seen: maximum number of questions in all epochs together, about a minute's work.
        seed: seed of sample, initialization, order and dropout.
    """

    longest: int = 3
    min_count: int = 2
    grams: int = 20_000
    answers: int = 3000
    width: int = 128
    dropout: float = 0.2
    learning_rate: float = 0.01
    epochs: int = 8
    batch: int = 64
    steps: int = 4000
    questions: int = 500_000
    seen: int = 1_000_000
    seed: int = 0


class QuestionOnly(nn.Module):
    """Answers questions from their words alone.

    Args:
        grams: the n-grams, by index in ``embedding``.
        answers: the answers to choose from.
        settings: settings of the training.
    """

    def __init__(self, grams: Sequence[str], answers: Sequence[str], settings: Settings) -> None:
        super().__init__()
        self.answers = list(answers)
        self._places = {gram: place for place, gram in enumerate(grams)}
        self._settings = settings
        self.embedding = nn.EmbeddingBag(len(grams), settings.width, mode="mean")
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.score = nn.Linear(settings.width, len(answers))

    @classmethod
    def fit(
        cls, questions: Sequence[str], answers: Sequence[str], settings: Settings = Settings()
    ) -> "QuestionOnly":
        """Train on questions [N] and their answers [N], N > 0; equal arguments, equal result."""
        with _seeded(settings.seed), torch.enable_grad():  # evaluations call this without
            counts = Counter(g for text in questions for g in set(_grams(text, settings.longest)))
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            least = min(settings.min_count, len(questions))
            grams = [gram for gram, count in ranked if count >= least]
            frequent = sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0]))
            chosen = [answer for answer, _ in frequent[: settings.answers]]
            answerer = cls(grams[: settings.grams], chosen, settings)
            answerer._train(questions, answers)
        return answerer.eval()

    @torch.no_grad()
    def predict(self, questions: Sequence[str]) -> list[str]:
        """The most probable answer to each question."""
        bags = self._bags(questions)
        found: list[str] = []
        with _seeded(self._settings.seed):  # one thread: sums in the same order as when trained
            for rows in np.array_split(np.arange(len(bags)), -(-len(bags) // ROWS_AT_ONCE) or 1):
                best = self(*bags.of(rows)).argmax(dim=-1) if len(rows) else torch.empty(0).long()
                found += [self.answers[place] for place in best.tolist()]
        return found

    def forward(self, grams: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Scores [B, answers] of bags of n-grams: int64 [G] of all, with each bag's start [B]."""
        bags = self.embedding(grams, starts)
        scores: torch.Tensor = self.score(
            F.dropout(bags, self._settings.dropout, training=self.training)
        )
        return scores

    def as_bytes(self) -> bytes:
        """The answerer as a file for ``of_bytes``."""
        texts = json.dumps([[*self._places], self.answers, asdict(self._settings)]).encode()
        return save(
            {"texts": torch.frombuffer(bytearray(texts), dtype=torch.uint8)} | self.state_dict()
        )

    @classmethod
    def of_bytes(cls, content: bytes) -> "QuestionOnly":
        """Inverse of ``as_bytes``."""
        tensors = load(content)
        grams, answers, settings = parse_json(tensors.pop("texts").numpy().tobytes())
        answerer = cls(grams, answers, Settings(**settings))
        answerer.load_state_dict(tensors)
        return answerer.eval()

    def _train(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        settings = self._settings
        classes = {answer: place for place, answer in enumerate(self.answers)}
        targets = torch.tensor([classes.get(answer, OUTSIDE) for answer in answers])
        bags = self._bags(questions)
        total = min(settings.epochs * len(bags), max(settings.seen, len(bags)))
        order = torch.cat([torch.randperm(len(bags)) for _ in range(-(-total // len(bags)))])
        size = max(settings.batch, -(-total // settings.steps))
        batches = order[:total].split(size)
        optimizer = torch.optim.Adam(self.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
        with ProgressLine.logged(log) as line:
            for done, rows in enumerate(batches, start=1):
                scores = self(*bags.of(rows.numpy()))
                losses = F.cross_entropy(
                    scores, targets[rows], reduction="sum", ignore_index=OUTSIDE
                )
                optimizer.zero_grad()
                (losses / len(rows)).backward()  # a mean would be NaN for targets outside only
                optimizer.step()
                schedule.step()
                line.update(f"question-only answerer: step {done:,} of {len(batches):,}")

    def _bags(self, questions: Sequence[str]) -> "_Bags":
        places = self._places
        longest = self._settings.longest
        bags = ([places[g] for g in _grams(text, longest) if g in places] for text in questions)
        return _Bags.of_lists(bags)


def question_only(tables: Sequence[QuestionTable], settings: Settings = Settings()) -> QuestionOnly:
    """An answerer trained on the answered questions of ``tables``; at least one has an answer.

    It is kept in the user's cache, by the training questions, their answers and the settings.
    """
    questions, answers = _sampled(tables, settings)
    digest = hashlib.blake2b(json.dumps([questions, answers]).encode(), digest_size=20)
    key = repr((FORMAT, settings, digest.hexdigest()))
    cache = Cache(user_cache("question_only"), CACHE_BYTES)
    if content := cache.get(key):
        return QuestionOnly.of_bytes(content)
    log.info(
        "Training a question-only answerer on %d training questions, to compare with "
        "(task.blind_baseline).",
        len(questions),
    )
    answerer = QuestionOnly.fit(questions, answers, settings)
    cache.put(key, answerer.as_bytes())
    return answerer


def _sampled(tables: Sequence[QuestionTable], settings: Settings) -> tuple[list[str], list[str]]:
    """Answered questions and their answers, a sample if there are more than the settings allow."""
    answered = [np.flatnonzero(table.codes("answer") >= 0) for table in tables]
    share = min(1.0, settings.questions / max(1, sum(map(len, answered))))
    random = np.random.default_rng(settings.seed)
    questions: list[str] = []
    answers: list[str] = []
    for table, rows in zip(tables, answered, strict=True):
        if share < 1:
            rows = np.sort(random.permutation(rows)[: round(share * len(rows))])
        texts, right = table.texts(rows, "question", "answer")
        questions += texts
        answers += right
    return questions, answers


@dataclass(frozen=True)
class _Bags:
    """Bags of integers: all of them [G], and each bag's end [N]."""

    values: Codes
    ends: Codes

    @classmethod
    def of_lists(cls, lists: Iterator[list[int]]) -> "_Bags":
        values: list[int] = []
        ends: list[int] = []
        for each in lists:
            values += each
            ends.append(len(values))
        return cls(np.array(values, np.int64), np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def of(self, rows: Codes) -> tuple[torch.Tensor, torch.Tensor]:
        """All values of these bags, and each bag's start, as ``EmbeddingBag`` takes them."""
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        sizes = self.ends[rows] - starts
        own = np.cumsum(sizes) - sizes
        places = np.arange(sizes.sum()) + np.repeat(starts - own, sizes)
        return torch.from_numpy(self.values[places]), torch.from_numpy(own)


def _grams(text: str, longest: int) -> list[str]:
    """N-grams of up to ``longest`` words, those at beginning and end of the question marked."""
    words = ["^", *re.findall(r"\w+", text.lower()), "$"]
    return [
        " ".join(words[start : start + size])
        for size in range(1, longest + 1)
        for start in range(len(words) - size + 1)
    ]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator seeded and one thread within; both as before afterwards.

    More threads would add in another order, and give another figure.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
