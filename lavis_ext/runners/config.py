"""The section ``run``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import is_folder_name
from lavis_ext.config.schema import option, section
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.datasets.samples import EXAMPLES, IMAGES, SampleSize
from lavis_ext.features.config import FeaturesConfig


@dataclass
class WandbConfig:
    """Weights & Biases, used when the config has the section."""

    project: str = option("lavis_ext", "Project.")
    name: str | None = option(None, "Name of the run; by default its folder's.")
    mode: str = option("online", "Where the run goes.", choices=("online", "offline", "disabled"))


AUTO = "auto"


@dataclass
class ParameterGroup:
    """An entry of ``run.parameter_groups``: parameters with their own learning rate and decay."""

    parameters: list[str] = option(list, "Patterns of trained parameters in this group.")
    init_lr: float | None = option(
        None,
        "Learning rate after warm-up; the schedule scales it as it does run.init_lr, which it is "
        "by default.",
        above=0,
    )
    weight_decay: float | None = option(
        None, "AdamW's weight decay; by default run.weight_decay.", at_least=0
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for a group without patterns."""
        if not self.parameters:
            raise UserError(
                f"{where}.parameters is empty; give patterns of parameter names, such as "
                "['*.bias']."
            )


@dataclass
class RunConfig:
    """Options of training and evaluation, under LAVIS's names where LAVIS has them."""

    runner: str = option("trainer", "The runner's name in the registry.")
    task: str | None = option(None, "The task's name in the registry; by default the model's own.")
    trainable: list[str] | None = option(
        None,
        "Patterns of the trained parameters; all others are frozen. By default the model's own.",
    )

    max_epoch: int = option(10, "Epochs.", at_least=1, may_change=True)
    max_steps: int | None = option(
        None, "Optimizer steps after which training ends.", at_least=1, may_change=True
    )
    # Its effect depends on the number of processes; batch order is compared instead.
    batch_size_train: int | str = option(
        32,
        "Examples per process and batch, on average: batches have equally many images. auto picks "
        "the largest size that fits into memory and writes it to the run's config.",
        at_least=1,
        may_change=True,
    )
    batch_size_eval: int = option(
        64, "Examples per process and batch.", at_least=1, may_change=True
    )
    examples_per_image: int = option(
        1,
        "Examples per image in a batch, which share the image's encoding.",
        at_least=1,
    )
    images_per_batch: int | None = option(
        None,
        "Maximum number of images per process and batch, even if that makes batches smaller than "
        "batch_size_train: images take most of the memory.",
        at_least=1,
        may_change=True,
    )
    train_dataset_ratios: dict[str, float] | None = option(
        None,
        "Share of the batches by data set, for runs with several; by default each is read once per "
        "epoch.",
        above=0,
    )
    accum_grad_iters: int = option(1, "Batches per optimizer step.", at_least=1)
    num_workers: int = option(4, "Data loading processes per split.", at_least=0, may_change=True)

    lr_sched: str = option("warmup_cosine_lr", "The schedule's name in the registry.")
    init_lr: float = option(1e-4, "Learning rate after warm-up.", above=0, may_change=True)
    min_lr: float = option(0.0, "Learning rate at the end.", at_least=0, may_change=True)
    warmup_lr: float = option(
        1e-6, "Learning rate at the start of warm-up.", at_least=0, may_change=True
    )
    warmup_steps: int = option(0, "Steps of warm-up.", at_least=0, may_change=True)
    lr_decay_rate: float = option(
        1.0,
        "Decay factor per epoch, for LAVIS's linear_warmup_step_lr.",
        above=0,
        at_most=1,
        may_change=True,
    )
    weight_decay: float = option(0.05, "AdamW's weight decay.", at_least=0, may_change=True)
    parameter_groups: list[ParameterGroup] | None = option(
        None,
        "Parameters with their own learning rate or weight decay, each entry with "
        "`parameters`, `init_lr` and `weight_decay`.",
        may_change=True,
    )
    beta2: float = option(0.999, "AdamW's second beta.", at_least=0, at_most=1, may_change=True)
    max_grad_norm: float | None = option(
        1.0, "Gradients are clipped to this norm.", above=0, may_change=True
    )
    amp: bool = option(False, "bfloat16 autocast.", may_change=True)
    compile: bool = option(
        False,
        "Compile the training path with torch.compile; takes a minute or more at the start.",
        may_change=True,
    )
    compile_backend: str = option(
        "inductor",
        "Backend of torch.compile; inductor needs a C++ compiler.",
        choices=("inductor", "aot_eager", "eager"),
        may_change=True,
    )

    sharding: str | None = option(
        None,
        "fsdp2 shards the parameters of shard_units, including frozen ones, across processes; by "
        "default each process has all parameters.",
        choices=("fsdp2",),
        may_change=True,
    )
    shard_units: list[str] | None = option(
        None,
        "Name patterns of the modules that sharding shards, each as its own unit; by default "
        "the model's.",
        may_change=True,
    )

    train_splits: list[str] | None = option(None, "Training split; by default the task's.")
    valid_splits: list[str] | None = option(
        None, "Split that selects the best weights; by default the task's."
    )
    test_splits: list[str] | None = option(
        None, "Splits reported at the end; by default the task's.", may_change=True
    )
    small_train_size: int | float | None = option(
        None,
        "Size of a seeded sample of the training split: a number of examples, or a share of its "
        "images such as 0.5; also the default for the other splits.",
        above=0,
    )
    small_val_size: int | float | None = option(None, "The same for valid_splits.", above=0)
    small_test_size: int | float | None = option(
        None, "The same for test_splits.", above=0, may_change=True
    )
    sample_by: str = option(
        IMAGES,
        "Unit of these samples: images, each with all of its examples, until the size is reached; "
        "or single examples, which need nearly as many images as examples.",
        choices=(IMAGES, EXAMPLES),
        may_change=True,  # batch order is compared instead
    )

    metric: str | None = option(
        None,
        "Validation metric that selects the best weights; by default the task's or, if the "
        "model lacks it, the loss.",
    )
    metric_goal: str | None = option(
        None,
        "Better direction of the metric; by default as declared.",
        choices=("max", "min"),
    )
    report: bool = option(
        True, "Write the final evaluations as a page, report.html.", may_change=True
    )
    patience: int | None = option(
        None,
        "Validations without improvement after which training stops.",
        at_least=1,
        may_change=True,
    )
    min_gain: float = option(0.0, "Smallest improvement that counts.", at_least=0, may_change=True)
    val_every_steps: int | None = option(
        None,
        "Steps between validations; by default one after each epoch.",
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
        "output", "Parent folder; each run creates its own folder in it.", may_change=True
    )
    name: str | None = option(
        None,
        "Name of the run's folder; by default the config's name with date and time.",
        may_change=True,
    )
    resume: str | None = option(
        None,
        "auto resumes the run of that name, or the newest unfinished run of this config, or starts "
        "a new one. Otherwise the path of a run's folder or of a state. Evaluations resume too.",
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
        "Consecutive steps with a non-finite loss or gradient after which training stops.",
        at_least=1,
        may_change=True,
    )
    save_freq: int | None = option(
        None,
        "Epochs between saved weights; by default only best and last are kept.",
        at_least=1,
        may_change=True,
    )
    log_freq: int = option(20, "Steps between lines of the log.", at_least=1, may_change=True)
    tensorboard: bool = option(False, "Write TensorBoard's files.", may_change=True)
    wandb: WandbConfig | None = section(WandbConfig, optional=True, may_change=True)
    features: FeaturesConfig | None = section(FeaturesConfig, optional=True)
    data_faults: DataFaultsConfig = section(DataFaultsConfig, may_change=True)

    def check_together(self, where: str) -> None:
        """Raise UserError for sizes, learning rates or names that break the rules."""
        if isinstance(self.batch_size_train, str) and self.batch_size_train != AUTO:
            raise UserError(
                f"{where}.batch_size_train is '{self.batch_size_train}'; it must be a whole "
                f"number, or {AUTO}."
            )
        if self.min_lr > self.init_lr:
            raise UserError(
                f"{where}.min_lr ({self.min_lr}) must not exceed init_lr ({self.init_lr})."
            )
        if self.sharding is not None and self.compile:
            raise UserError(f"{where}.sharding and {where}.compile can't be combined; remove one.")
        if self.shard_units is not None and self.sharding is None:
            raise UserError(
                f"{where}.shard_units is set, but nothing is sharded without {where}.sharding; set "
                f"{where}.sharding=fsdp2, or remove {where}.shard_units."
            )
        for role in ("train", "val", "test"):
            size = getattr(self, f"small_{role}_size")
            if isinstance(size, float) and size > 1:
                raise UserError(
                    f"{where}.small_{role}_size is {size}: a share of the images is at most 1.0. "
                    f"Write {round(size)} for that number of examples."
                )
        if self.name is not None and not is_folder_name(self.name):
            raise UserError(f"{where}.name is '{self.name}'; it must be the name of a folder.")

    def sharded(self, model: Any) -> list[str]:
        """Name patterns of the sharded modules; empty without ``sharding``."""
        if self.sharding is None:
            return []
        return list(model.shard_units() if self.shard_units is None else self.shard_units)

    def complete(self, task: Any, where: str) -> None:
        """Fill in the task class's splits if the config has none.

        Raises UserError for splits with conflicting roles.
        """
        for role in ("train", "valid", "test"):
            if getattr(self, f"{role}_splits") is None:
                setattr(self, f"{role}_splits", list(getattr(task.splits, role)))
        train, valid, test = self.training, self.validation, self.testing
        if len(train) != 1:
            raise UserError(
                f"{where}.train_splits must name exactly one split, the training split."
            )
        if len(valid) > 1:
            raise UserError(
                f"{where}.valid_splits must name exactly one split; it selects the best weights."
            )
        both = {*train, *valid} & {*test} or {*train} & {*valid}
        if both:
            raise UserError(
                f"{where}: {', '.join(sorted(both))} has two roles; train_splits, valid_splits and "
                "test_splits must be disjoint."
            )
        if self.patience is not None and not valid:
            raise UserError(f"{where}.patience needs a split in valid_splits.")

    @property
    def examples_per_batch(self) -> int:
        """``batch_size_train`` as a number; ``auto`` is resolved before the first batch."""
        assert isinstance(self.batch_size_train, int)
        return self.batch_size_train

    @property
    def splits(self) -> list[str]:
        """All splits, training first."""
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

    def sizes(self, splits: Sequence[str]) -> dict[str, SampleSize | None]:
        """Sample size of each split; None for the whole split."""
        by_role = {
            **dict.fromkeys(self.testing, self.small_test_size or self.small_train_size),
            **dict.fromkeys(self.validation, self.small_val_size or self.small_train_size),
            **dict.fromkeys(self.training, self.small_train_size),
        }
        return {
            split: None if size is None else SampleSize(size, self.sample_by)
            for split, size in ((split, by_role.get(split)) for split in splits)
        }
