"""The section ``run``."""

from dataclasses import dataclass, field

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.evaluation.figures import lower_is_better
from lavis_ext.evaluation.gqa.bootstrap import FEWEST_RESAMPLES
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

    runner: str = option("fusion_runner", "The runner's name in the registry.")
    task: str = option("gqa_fusion", "The task's name in the registry.")
    trainable: list[str] = option(
        lambda: ["fusion.*"], "Patterns of the parameters that are trained; all others are frozen."
    )

    max_epoch: int = option(10, "Epochs.", at_least=1)
    max_steps: int | None = option(None, "Optimizer steps after which training ends.", at_least=1)
    batch_size_train: int = option(
        32,
        "Questions a process and batch, on average: batches have equally many images.",
        at_least=1,
    )
    batch_size_eval: int = option(64, "Questions a process and batch.", at_least=1)
    questions_per_image: int = option(
        1,
        "Questions of an image that stand together in a batch and share its encoding.",
        at_least=1,
    )
    accum_grad_iters: int = option(1, "Batches an optimizer step.", at_least=1)
    num_workers: int = option(4, "Processes that load data, for each split.", at_least=0)

    lr_sched: str = option("fusion_warmup_cosine_lr", "The schedule's name in the registry.")
    init_lr: float = option(1e-4, "Learning rate after warm-up.", above=0)
    min_lr: float = option(0.0, "Learning rate at the end.", at_least=0)
    warmup_lr: float = option(1e-6, "Learning rate at the start of warm-up.", at_least=0)
    warmup_steps: int = option(0, "Steps of warm-up.", at_least=0)
    lr_decay_rate: float = option(
        1.0, "Factor an epoch, for LAVIS's linear_warmup_step_lr.", above=0, at_most=1
    )
    weight_decay: float = option(0.05, "AdamW's weight decay.", at_least=0)
    beta2: float = option(0.999, "AdamW's second beta.", at_least=0, at_most=1)
    max_grad_norm: float | None = option(1.0, "Gradients are clipped to this norm.", above=0)
    amp: bool = option(False, "bfloat16 autocast.")
    compile: bool = option(
        False, "torch.compile for what training passes; a minute or more at the start."
    )
    compile_backend: str = option(
        "inductor",
        "What torch.compile makes programs with; inductor needs a C++ compiler.",
        choices=("inductor", "aot_eager", "eager"),
    )

    train_splits: list[str] = option(lambda: ["train"], "Splits that are trained on.")
    valid_splits: list[str] = option(lambda: ["val"], "Split that selects the best weights.")
    test_splits: list[str] = option(lambda: ["testdev"], "Splits that are reported at the end.")
    small_train_size: int | None = option(
        None,
        "Size of a seeded sample of the training split; alone it bounds the others too.",
        at_least=1,
    )
    small_val_size: int | None = option(None, "The same for valid_splits.", at_least=1)
    small_test_size: int | None = option(None, "The same for test_splits.", at_least=1)

    metric: str = option("answer_accuracy", "Validation metric that selects the best weights.")
    metric_goal: str | None = option(
        None,
        "Which is better, more or less; by default less of a loss and of distribution, else more.",
        choices=("max", "min"),
    )
    full_metrics: str = option(
        "end",
        "When metrics that read choices files (validity, plausibility) are computed; "
        "run.metric always is.",
        choices=("end", "always"),
    )
    resamples: int = option(
        1000,
        "Draws of the bootstrap for the final figures' intervals; 0 for no intervals.",
        at_least=0,
    )
    report: bool = option(True, "Write the final evaluations as a page, report.html.")
    report_examples: int = option(
        500, "Questions of each split that the page shows.", at_least=0, at_most=5000
    )
    patience: int | None = option(
        None, "Validations without gain after which training stops.", at_least=1
    )
    min_gain: float = option(0.0, "What counts as a gain must exceed this.", at_least=0)
    val_every_steps: int | None = option(
        None, "Steps between validations; by default one follows each epoch.", at_least=1
    )

    seed: int = option(
        42, "Seed of weights, data order, samples and dropout.", at_least=0, at_most=2**32 - 1
    )
    device: str = option("auto", "auto, cpu or cuda.", choices=("auto", "cpu", "cuda"))
    process_group_timeout_minutes: float = option(
        10.0, "Minutes after which a process stops waiting for the others.", above=0
    )
    watchdog_seconds: float = option(
        120.0,
        "Seconds without progress after which a warning says which process is at what.",
        above=0,
    )
    output_dir: str = option("output", "Each run makes a folder of its own in this one.")
    name: str | None = option(
        None, "The name of that folder; by default the config's name, with date and time."
    )
    resume: str | None = option(
        None,
        "auto, to go on with the run of that name, or with the newest of this config that has not "
        "ended, or start; or the path of a run's folder or of a state.",
    )
    save_every_steps: int | None = option(None, "Steps between states of the run.", at_least=1)
    save_every_minutes: float | None = option(
        30.0, "Minutes between states of the run; the last two are kept.", above=0
    )
    max_skipped_steps: int = option(
        10,
        "Training stops after so many steps in a row with a loss or gradient that isn't finite.",
        at_least=1,
    )
    save_freq: int | None = option(
        None, "Epochs between weights that are kept; by default only best and last.", at_least=1
    )
    log_freq: int = option(20, "Steps between lines of the log.", at_least=1)
    tensorboard: bool = option(False, "Write TensorBoard's files.")
    wandb: WandbConfig | None = field(default=None)
    features: FeaturesConfig | None = field(default=None)
    data_faults: DataFaultsConfig = field(default_factory=DataFaultsConfig)

    def check_together(self, where: str) -> None:
        """Rules between splits, and between rates."""
        if self.train_splits != ["train"]:
            raise UserError(f"{where}.train_splits must be [train]: GQA's other splits evaluate.")
        if len(self.valid_splits) > 1:
            raise UserError(f"{where}.valid_splits must name one split: it selects the best.")
        both = {*self.train_splits, *self.valid_splits} & set(self.test_splits)
        if both or self.valid_splits == self.train_splits:
            raise UserError(
                f"{where}: train trains, one split selects, others are reported; "
                f"{', '.join(sorted(both or self.train_splits))} can't do two of these."
            )
        if self.min_lr > self.init_lr:
            raise UserError(f"{where}.min_lr ({self.min_lr}) is above init_lr ({self.init_lr}).")
        if 0 < self.resamples < FEWEST_RESAMPLES:
            raise UserError(
                f"{where}.resamples is {self.resamples}; it must be 0, for no intervals, or at "
                f"least {FEWEST_RESAMPLES}."
            )
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name):
            raise UserError(f"{where}.name is '{self.name}'; it must be the name of a folder.")
        if self.patience is not None and not self.valid_splits:
            raise UserError(f"{where}.patience needs a split in valid_splits.")

    @property
    def goal(self) -> str:
        """Which is better of ``metric``: ``max`` or ``min``."""
        return self.metric_goal or ("min" if lower_is_better(self.metric) else "max")

    def sizes(self, splits: list[str]) -> dict[str, int | None]:
        """The sample size of each of these splits, None for all of it."""
        by_role = {
            **dict.fromkeys(self.test_splits, self.small_test_size or self.small_train_size),
            **dict.fromkeys(self.valid_splits, self.small_val_size or self.small_train_size),
            **dict.fromkeys(self.train_splits, self.small_train_size),
        }
        return {split: by_role.get(split) for split in splits}
