"""Speed, time left and early stopping of a run."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Window(NamedTuple):
    """Speed since the last log line."""

    rate: float
    """Examples per second."""
    waiting: float
    """Share of the time in which no batch was ready, in [0, 1]."""


class Progress:
    """Times steps and validations separately, to estimate the time left of both.

    Args:
        total_steps: optimizer steps of the run.
        total_validations: evaluations of the run, final ones included, in units of a validation.
        clock: returns the time in seconds; replaced in tests.
    """

    def __init__(
        self,
        total_steps: int,
        total_validations: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.total_steps = total_steps
        self.total_validations = total_validations
        self._clock = clock
        self._started = clock()
        self._validating = 0.0
        self._validation_started: float | None = None
        self._window_started = self._started
        self._waited = 0.0
        self._steps_before = 0
        self.steps = 0
        self.validations = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def facts(self) -> dict[str, float]:
        """State for ``resume``, times in seconds."""
        return {
            "elapsed": self.elapsed,
            "validating": self._validating,
            "validations": self.validations,
            "window": self._clock() - self._window_started,
            "waited": self._waited,
        }

    def resume(self, steps: int, facts: Mapping[str, float]) -> None:
        """Continue after ``steps`` as if no time had passed since ``facts``."""
        now = self._clock()
        self.steps = self._steps_before = steps
        self._started = now - facts["elapsed"]
        self._validating = facts["validating"]
        self.validations = int(facts["validations"])
        self._window_started = now - facts["window"]
        self._waited = facts["waited"]

    def step(self) -> None:
        """Count a step."""
        self.steps += 1

    def begin_validation(self) -> None:
        """Exclude the time from now on from the rate of steps, until ``validated``."""
        self._validation_started = self._clock()

    def validated(self, seconds: float) -> None:
        """Count a validation; exclude its ``seconds`` from the rate of steps."""
        self._validation_started = None
        self.validations += 1
        self._validating += seconds
        self._window_started += seconds

    def waited(self, seconds: float) -> None:
        """Count time in which no batch was ready.

        A process's first wait isn't counted, since the workers have just started.
        """
        if self.steps > self._steps_before:
            self._waited += seconds

    def window(self, examples: float) -> Window:
        """Speed since the last call, given the number of ``examples`` in that time."""
        now = self._clock()
        seconds = max(now - self._window_started, 1e-9)
        window = Window(examples / seconds, self._waited / seconds)
        self._window_started, self._waited = now, 0.0
        return window

    @property
    def seconds_per_step(self) -> float:
        """Mean time of a step so far, without validations."""
        started = self._validation_started
        now = self._clock() if started is None else started
        return (now - self._started - self._validating) / max(self.steps, 1)

    @property
    def untimed(self) -> bool:
        """Whether ``seconds_left`` lacks the evaluations, of which none has been timed."""
        return self.total_validations > 0 and not self.validations

    @property
    def time_left(self) -> str:
        """The time left in words, such as ``4 min 10 s left``."""
        return left_in_words(self.seconds_left, self.untimed)

    @property
    def seconds_left(self) -> float:
        """Estimated time of the remaining steps and validations.

        Validations count as 0 s until one has been timed (``untimed``).
        """
        validation = self._validating / max(self.validations, 1)
        return (
            max(self.total_steps - self.steps, 0) * self.seconds_per_step
            + max(self.total_validations - self.validations, 0) * validation
        )


class EvaluationProgress(NamedTuple):
    """Progress of an evaluation: its split, the batches done, all of them, and the time left."""

    split: str
    done: int
    batches: int
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"{self.split}: batch {self.done:,} of {self.batches:,}, "
            f"{duration(self.seconds_left)} left of this evaluation"
        )


def with_progress(
    batches: Iterable[Any], split: str, count: int, show: Callable[[EvaluationProgress], None]
) -> Iterator[Any]:
    """Yield the ``count`` batches of an evaluation of ``split``; ``show`` is called after each."""
    started = time.perf_counter()
    for done, batch in enumerate(batches, start=1):
        yield batch
        left = (count - done) * (time.perf_counter() - started) / done
        show(EvaluationProgress(split, done, count, left))


def left_in_words(seconds: float, untimed: bool) -> str:
    """The time left of a run; ``untimed`` if it lacks the evaluations."""
    return f"{duration(seconds)} left{', plus evaluations' if untimed else ''}"


def duration(seconds: float) -> str:
    """Format as ``1 h 05 min``, ``4 min 10 s`` or ``12 s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


@dataclass
class EarlyStopping:
    """Counts validations without improvement.

    Attributes:
        goal: ``max`` or ``min``.
        patience: validations without improvement after which training stops; None for never.
        min_gain: an improvement must exceed the best value by more than this.
        best: the best value so far; None before the first validation.
        waited: validations since the best one.
    """

    goal: str = "max"
    patience: int | None = None
    min_gain: float = 0.0
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> bool:
        """Record a validation's value; True if it is the new best. NaN never is."""
        gain = 0.0 if self.best is None else value - self.best
        if self.goal == "min":
            gain = -gain
        improved = (self.best is None and value == value) or gain > self.min_gain
        if improved:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return improved

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience
