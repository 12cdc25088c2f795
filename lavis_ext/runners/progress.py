"""How fast a run goes, when it will end, and when to stop it early."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Window(NamedTuple):
    """What the steps since the last line of the log were like."""

    rate: float
    """Examples a second."""
    waiting: float
    """Share of the time in which no batch was ready, 0 to 1."""


class Progress:
    """Times steps and validations apart, because the time left has both to come.

    Args:
        total_steps: optimizer steps of the run.
        total_validations: validations of the run, final evaluations counted in.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        total_steps: int,
        total_validations: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.total_steps = total_steps
        self.total_validations = total_validations
        self._clock = clock
        self._started = clock()
        self._validating = 0.0
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
        """What ``resume`` needs, times in seconds."""
        return {
            "elapsed": self.elapsed,
            "validating": self._validating,
            "validations": self.validations,
            "window": self._clock() - self._window_started,
            "waited": self._waited,
        }

    def resume(self, steps: int, facts: Mapping[str, float]) -> None:
        """Go on after ``steps`` as if no time had passed since ``facts``."""
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

    def validated(self, seconds: float) -> None:
        """Count a validation that took so long. It is left out of the rate."""
        self.validations += 1
        self._validating += seconds
        self._window_started += seconds

    def waited(self, seconds: float) -> None:
        """Count time in which no batch was ready.

        A process's first wait isn't counted: the workers have just been started.
        """
        if self.steps > self._steps_before:
            self._waited += seconds

    def window(self, examples: float) -> Window:
        """The time since the last call, in which there were ``examples``."""
        now = self._clock()
        seconds = max(now - self._window_started, 1e-9)
        window = Window(examples / seconds, self._waited / seconds)
        self._window_started, self._waited = now, 0.0
        return window

    @property
    def seconds_left(self) -> float:
        """Of the whole run: steps and validations to come, at the pace of those past.

        Before the first validation there is no pace to go by, and validations count as nothing.
        """
        pace = (self.elapsed - self._validating) / max(self.steps, 1)
        validation = self._validating / max(self.validations, 1)
        return (
            max(self.total_steps - self.steps, 0) * pace
            + max(self.total_validations - self.validations, 0) * validation
        )


@dataclass
class EarlyStopping:
    """Counts validations without gain.

    Attributes:
        goal: ``max`` or ``min``.
        patience: validations without gain after which training stops; None for never.
        min_gain: a validation gains if it is better than the best by more than this.
        best: the best value so far; None before the first validation.
        waited: validations since the best.
    """

    goal: str = "max"
    patience: int | None = None
    min_gain: float = 0.0
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> bool:
        """Take a validation's value; whether it is the new best. A value that is NaN never is."""
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
