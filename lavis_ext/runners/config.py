"""The section ``run``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option, section
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.features.config import FeaturesConfig


@dataclass
class WandbConfig:
    """Weights & Biases, used when the section stands in the config."""

    project: str = option("lavis_ext", "Project.")
    name: str | None = option(None, "Name of the run; by default its folder's.")
    mode: str = option("online", "Where the run goes.", choices=("online", "offline", "disabled"))


@dataclass
class RunConfig:
    """How a model is trained and evaluated. Names are LAVIS's where LAVIS has the option."""

    runner: str = option("trainer", "The runner's name in the registry.")
    task: str | None = option(None, "The task's name in the registry; by default the model's own.")
    trainable: list[str] | None = option(
        None,
        "Patterns of the parameters that are trained, all others are frozen; by default the "
        "model's own.",
    )

    max_epoch: int = option(10, "Epochs.", at_least=1, may_change=True)
    max_steps: int | None = option(
        None, "Optimizer steps after which training ends.", at_least=1, may_change=True
    )
    # What it means depends on the number of processes; the order of the batches is compared.
    batch_size_train: int = option(
        32,
        "Examples a process and batch, on average: batches have equally many images.",
        at_least=1,
        may_change=True,
    )
    batch_size_eval: int = option(64, "Examples a process and batch.", at_least=1, may_change=True)
    examples_per_image: int = option(
        1,
        "Examples about one image that stand together in a batch and share its encoding.",
        at_least=1,
    )
    train_dataset_ratios: dict[str, float] | None = option(
        None,
        "Shares of the batches by data set, of a run with several; by default each has all of its "
        "own once an epoch.",
        above=0,
    )
    accum_grad_iters: int = option(1, "Batches an optimizer step.", at_least=1)
    num_workers: int = option(
        4, "Processes that load data, for each split.", at_least=0, may_change=True
    )

    lr_sched: str = option("warmup_cosine_lr", "The schedule's name in the registry.")
    init_lr: float = option(1e-4, "Learning rate after warm-up.", above=0, may_change=True)
    min_lr: float = option(0.0, "Learning rate at the end.", at_least=0, may_change=True)
    warmup_lr: float = option(
        1e-6, "Learning rate at the start of warm-up.", at_least=0, may_change=True
    )
    warmup_steps: int = option(0, "Steps of warm-up.", at_least=0, may_change=True)
    lr_decay_rate: float = option(
        1.0,
        "Factor an epoch, for LAVIS's linear_warmup_step_lr.",
        above=0,
        at_most=1,
        may_change=True,
    )
    weight_decay: float = option(0.05, "AdamW's weight decay.", at_least=0, may_change=True)
    beta2: float = option(0.999, "AdamW's second beta.", at_least=0, at_most=1, may_change=True)
    max_grad_norm: float | None = option(
        1.0, "Gradients are clipped to this norm.", above=0, may_change=True
    )
    amp: bool = option(False, "bfloat16 autocast.", may_change=True)
    compile: bool = option(
        False,
        "torch.compile for what training passes; a minute or more at the start.",
        may_change=True,
    )
    compile_backend: str = option(
        "inductor",
        "What torch.compile makes programs with; inductor needs a C++ compiler.",
        choices=("inductor", "aot_eager", "eager"),
        may_change=True,
    )

    train_splits: list[str] | None = option(
        None, "Split that is trained on; by default the task's."
    )
    valid_splits: list[str] | None = option(
        None, "Split that selects the best weights; by default the task's."
    )
    test_splits: list[str] | None = option(
        None, "Splits that are reported at the end; by default the task's.", may_change=True
    )
    small_train_size: int | None = option(
        None,
        "Size of a seeded sample of the training split; alone it bounds the others too.",
        at_least=1,
    )
    small_val_size: int | None = option(None, "The same for valid_splits.", at_least=1)
    small_test_size: int | None = option(
        None, "The same for test_splits.", at_least=1, may_change=True
    )

    metric: str | None = option(
        None, "Validation metric that selects the best weights; by default the task's."
    )
    metric_goal: str | None = option(
        None,
        "Which is better, more or less; by default as the metric is declared.",
        choices=("max", "min"),
    )
    report: bool = option(
        True, "Write the final evaluations as a page, report.html.", may_change=True
    )
    patience: int | None = option(
        None, "Validations without gain after which training stops.", at_least=1, may_change=True
    )
    min_gain: float = option(
        0.0, "What counts as a gain must exceed this.", at_least=0, may_change=True
    )
    val_every_steps: int | None = option(
        None,
        "Steps between validations; by default one follows each epoch.",
        at_least=1,
        may_change=True,
    )

    seed: int = option(
        42, "Seed of weights, data order, samples and dropout.", at_least=0, at_most=2**32 - 1
    )
    device: str = option(
        "auto", "auto, cpu or cuda.", choices=("auto", "cpu", "cuda"), may_change=True
    )
    process_group_timeout_minutes: float = option(
        10.0,
        "Minutes after which a process stops waiting for the others.",
        above=0,
        may_change=True,
    )
    watchdog_seconds: float = option(
        120.0,
        "Seconds without progress after which a warning names the stalled process and its step.",
        above=0,
        may_change=True,
    )
    output_dir: str = option(
        "output", "Each run makes a folder of its own in this one.", may_change=True
    )
    name: str | None = option(
        None,
        "The name of that folder; by default the config's name, with date and time.",
        may_change=True,
    )
    resume: str | None = option(
        None,
        "auto, to go on with the run of that name, or with the newest of this config that has not "
        "ended, or start; or the path of a run's folder or of a state.",
        may_change=True,
    )
    save_every_steps: int | None = option(
        None, "Steps between states of the run.", at_least=1, may_change=True
    )
    save_every_minutes: float | None = option(
        30.0, "Minutes between states of the run; the last two are kept.", above=0, may_change=True
    )
    max_skipped_steps: int = option(
        10,
        "Steps in a row with a loss or gradient that isn't finite after which training stops.",
        at_least=1,
        may_change=True,
    )
    save_freq: int | None = option(
        None,
        "Epochs between weights that are kept; by default only best and last.",
        at_least=1,
        may_change=True,
    )
    log_freq: int = option(20, "Steps between lines of the log.", at_least=1, may_change=True)
    tensorboard: bool = option(False, "Write TensorBoard's files.", may_change=True)
    wandb: WandbConfig | None = section(WandbConfig, optional=True, may_change=True)
    features: FeaturesConfig | None = section(FeaturesConfig, optional=True)
    data_faults: DataFaultsConfig = section(DataFaultsConfig, may_change=True)

    def check_together(self, where: str) -> None:
        """Rules between rates, and for names."""
        if self.min_lr > self.init_lr:
            raise UserError(f"{where}.min_lr ({self.min_lr}) is above init_lr ({self.init_lr}).")
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name):
            raise UserError(f"{where}.name is '{self.name}'; it must be the name of a folder.")

    def complete(self, task: Any, where: str) -> None:
        """Take the splits and the metric that the config leaves to the task (its class).

        Raises UserError for splits whose roles don't go together.
        """
        for role in ("train", "valid", "test"):
            if getattr(self, f"{role}_splits") is None:
                setattr(self, f"{role}_splits", list(getattr(task.splits, role)))
        self.metric = self.metric or task.default_metric
        train, valid, test = self.training, self.validation, self.testing
        if len(train) != 1:
            raise UserError(f"{where}.train_splits must name one split: it is trained on.")
        if len(valid) > 1:
            raise UserError(f"{where}.valid_splits must name one split: it selects the best.")
        both = {*train, *valid} & {*test} or {*train} & {*valid}
        if both:
            raise UserError(
                f"{where}: one split trains, one selects, others are reported; "
                f"{', '.join(sorted(both))} can't do two of these."
            )
        if self.patience is not None and not valid:
            raise UserError(f"{where}.patience needs a split in valid_splits.")

    @property
    def splits(self) -> list[str]:
        """All splits, that of training first."""
        return [*self.training, *self.validation, *self.testing]

    @property
    def training(self) -> list[str]:
        """``train_splits``, once the task is known."""
        return self.train_splits or []

    @property
    def validation(self) -> list[str]:
        """``valid_splits``, once the task is known."""
        return self.valid_splits or []

    @property
    def testing(self) -> list[str]:
        """``test_splits``, once the task is known."""
        return self.test_splits or []

    def sizes(self, splits: Sequence[str]) -> dict[str, int | None]:
        """The sample size of each of these splits, None for all of it."""
        by_role = {
            **dict.fromkeys(self.testing, self.small_test_size or self.small_train_size),
            **dict.fromkeys(self.validation, self.small_val_size or self.small_train_size),
            **dict.fromkeys(self.training, self.small_train_size),
        }
        return {split: by_role.get(split) for split in splits}
