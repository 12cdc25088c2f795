"""When to stop, and which validation was the best."""

from dataclasses import dataclass


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
