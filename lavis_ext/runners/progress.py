"""How fast a run goes, and when the whole of it will have ended."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

Batch = TypeVar("Batch")


class Window(NamedTuple):
    """What the steps since the last line of the log were like."""

    rate: float
    """Questions a second."""
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

    def waiting_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, the time until each is there counted as waiting.

        That for a process's first isn't: the workers have just been started.
        """
        iterator = iter(batches)
        while True:
            started = self._clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if self.steps > self._steps_before:
                self._waited += self._clock() - started
            yield batch

    def window(self, questions: float) -> Window:
        """The time since the last call, in which there were ``questions``."""
        now = self._clock()
        seconds = max(now - self._window_started, 1e-9)
        window = Window(questions / seconds, self._waited / seconds)
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
