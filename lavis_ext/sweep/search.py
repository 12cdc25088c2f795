"""``--search``: trials over ranges, chosen by Optuna and kept in the sweep's folder."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.metrics import Metric
from lavis_ext.config.scalars import plain_value
from lavis_ext.sweep.grid import PlannedRun, check_keys, split_entry, split_outside

if TYPE_CHECKING:
    # Imported on first use, because it is an optional extra.
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

OPTION = "--search"
EXAMPLE = "run.init_lr=1e-5..1e-3:log"
TRIALS = "trials.journal"
STUDY = "sweep"
RETRIED = "retried"
"""Attribute of a trial that is another's second try: the other's number."""


@dataclass(frozen=True)
class Range:
    """Values that a key may take in a search.

    Attributes:
        key: config key.
        low, high: bounds, both included; None for ``texts``.
        is_log: whether values are drawn evenly by their logarithm.
        texts: the values to choose from; empty for a range of numbers.
    """

    key: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    texts: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[str, ...]:
        """Texts to check before the first run: the bounds, or all of ``texts``."""
        return self.texts or (str(self.low), str(self.high))

    def distribution(self) -> "BaseDistribution":
        """The range for Optuna."""
        from optuna import distributions

        if self.low is None or self.high is None:
            return distributions.CategoricalDistribution(self.texts)
        if self.is_whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.is_log)
        return distributions.FloatDistribution(self.low, self.high, log=self.is_log)


def parse_search(entries: Sequence[str]) -> list[Range]:
    """Parse ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log`` and ``KEY=V1,V2`` entries.

    Raises UserError for entries of another form, empty ranges, and keys that are given twice.
    """
    ranges = [_parse_range(entry) for entry in entries]
    check_keys([each.key for each in ranges], OPTION)
    return ranges


def bounds(ranges: Sequence[Range]) -> list[PlannedRun]:
    """Combinations in which every key takes each of its ends, for checking them."""
    count = max(len(each.ends) for each in ranges)
    combinations = [
        [each.ends[min(n, len(each.ends) - 1)] for each in ranges] for n in range(count)
    ]
    keys = [each.key for each in ranges]
    return [
        PlannedRun(f"end {n + 1}", dict(zip(keys, texts, strict=True)))
        for n, texts in enumerate(combinations)
    ]


class Search:
    """A study of Optuna over ranges; interrupted and failed trials are given out again.

    Optuna keeps the end of a trial. A failed one that reaches a value later is added to the study
    as another trial with the same parameters.

    The study minimizes: the metric itself if lower is better, otherwise its negative. Higher or
    lower is known from the first finished run only.

    Args:
        folder: the sweep's folder.
        ranges: the searched keys.
        trials: total number of trials.
        seed: seed of the sampler.
        at_once: number of trials at a time.

    Raises UserError if Optuna isn't installed.
    """

    def __init__(
        self, folder: Path, ranges: Sequence[Range], trials: int, seed: int, at_once: int
    ) -> None:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._ranges, self._trials = ranges, trials
        path = str(folder / TRIALS)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
        self._study: Study = optuna.create_study(
            storage=storage, study_name=STUDY, direction="minimize", load_if_exists=True
        )
        begun = len(self._study.get_trials(deepcopy=False))
        # A resumed search must not draw its first trials again.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed + begun, constant_liar=at_once > 1
        )

    @property
    def runs(self) -> list[PlannedRun]:
        """Runs of all trials so far."""
        return [self._run(trial) for trial in self._begun()]

    def pending(self) -> list[PlannedRun]:
        """Runs of the trials without a value: those that haven't ended, and failed ones."""
        from optuna.trial import TrialState

        trials = self._study.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get(RETRIED) for trial in trials}
        return [
            self._run(trial)
            for trial in trials
            if trial.state is TrialState.RUNNING
            or (trial.state is TrialState.FAIL and trial.number not in retried)
        ]

    def begin(self) -> Iterator[PlannedRun]:
        """Choose trials one by one until there are as many as asked for."""
        distributions = {each.key: each.distribution() for each in self._ranges}
        while len(self._begun()) < self._trials:
            yield self._run(self._study.ask(distributions))

    def tell(self, run: PlannedRun, metric: Metric | None, value: float | None) -> None:
        """Tell Optuna how a trial ended; without a finite value it failed."""
        from optuna.trial import TrialState, create_trial

        number = int(run.name.rpartition("-")[2])
        trial = self._study.get_trials(deepcopy=False)[number]
        has_failed = trial.state is TrialState.FAIL
        if metric is None or value is None or not math.isfinite(value):
            if not has_failed:
                self._study.tell(number, state=TrialState.FAIL)
            return
        if metric.better is None:
            raise UserError(
                f"{OPTION}: {metric.name} declares no better direction; choose another --metric, "
                "or set run.metric and run.metric_goal."
            )
        minimized = -value if metric.better == "max" else value
        if has_failed:
            again = create_trial(
                value=minimized,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={RETRIED: number},
            )
            self._study.add_trial(again)
        else:
            self._study.tell(number, minimized)

    def _begun(self) -> list[Any]:
        """Trials, without second tries."""
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if RETRIED not in trial.user_attrs]

    def _run(self, trial: Any) -> PlannedRun:
        values = {each.key: str(trial.params[each.key]) for each in self._ranges}
        return PlannedRun(f"trial-{trial.number:03d}", values)


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError:
        raise UserError(
            f"{OPTION} needs Optuna, an optional extra: pip install '.[sweep]'. --grid works "
            "without it."
        ) from None
    return optuna


def _parse_range(entry: str) -> Range:
    key, text = split_entry(entry, OPTION, EXAMPLE)
    if ".." not in text:
        texts = tuple(split_outside(text, ","))
        if not all(texts) or len(set(texts)) < len(texts) or len(texts) < 2:
            raise UserError(
                f"{OPTION}: '{shortened(entry)}' needs a range, as in {EXAMPLE}, or at least two "
                "different values, separated by commas."
            )
        return Range(key, texts=texts)
    limits, _, scale = text.partition(":")
    low, high = (_number(each) for each in limits.split("..", 1))
    if low is None or high is None or scale not in ("", "log"):
        raise UserError(f"{OPTION}: '{shortened(entry)}' is no range of numbers; write {EXAMPLE}.")
    if low >= high:
        raise UserError(f"{OPTION}: '{shortened(entry)}' is empty; write the lower number first.")
    if scale and low <= 0:
        raise UserError(f"{OPTION}: '{shortened(entry)}' must begin above 0 for :log.")
    return Range(key, low, high, bool(scale))


def _number(text: str) -> float | int | None:
    value = plain_value(text.strip())
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if math.isfinite(value) and not isinstance(value, bool) else None
