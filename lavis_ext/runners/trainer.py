"""The runner ``trainer``: the training loop, from a batch to a validation, and evaluations.

One step: ``Trainer.train_epoch`` takes batches from the loader, ``Stepper.step`` makes an optimizer
step of them, ``Trainer._after_step`` does what is due: a validation, a checkpoint, an end.
"""

import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavis_ext import distributed
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import load_into
from lavis_ext.common.errors import UserError, listed, nearest
from lavis_ext.common.files import write_json
from lavis_ext.common.metrics import by_name
from lavis_ext.config import loader as config_loader
from lavis_ext.config.renamed import OldKey, told
from lavis_ext.datasets.base import to_device
from lavis_ext.datasets.loader import Loader
from lavis_ext.datasets.mixed import split_of
from lavis_ext.datasets.samplers import EvalBatches
from lavis_ext.distributed.peers import COMPUTING, ENDING, EVALUATING, LOADING
from lavis_ext.evaluation.table import metrics_table, reasons_list
from lavis_ext.models.base import StepOutput, TrainableModel, total_loss
from lavis_ext.registry import RunnerBase, registry
from lavis_ext.runners.best_weights import BestWeights
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.faults import LeftOut, SkippedSteps, Unseen
from lavis_ext.runners.freezing import parts_table, train_mode
from lavis_ext.runners.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from lavis_ext.runners.plan import TRAINING, TrainingPlan
from lavis_ext.runners.progress import EarlyStopping, Progress
from lavis_ext.runners.reporting import REPORT, write_run_report
from lavis_ext.runners.run_files import RunFiles
from lavis_ext.runners.run_folder import METRICS, versions
from lavis_ext.runners.run_log import duration, log
from lavis_ext.runners.state import (
    RankState,
    RunState,
    StateSaver,
    newest_state,
    random_states,
    set_random_states,
)
from lavis_ext.runners.stop_signals import StopRequested, StopSignals
from lavis_ext.tasks.base import Evaluation, Task

MUCH_WAITING = 0.1
"""Share of the time that may go into waiting for data before the log says so."""


@registry.register_runner("trainer")
class Trainer(RunnerBase):
    """Trains what ``run.trainable`` names and exports the best of it.

    Every process goes through every method together; only the main process writes files.

    Args:
        cfg: the run's config.
        task: the task.
        model: the model, in the same state in every process, frozen but for what is trained.
        datasets: data sets by the name of what they are for: ``train``, and each split that is
            evaluated.
        job_id: the run's name, first part of its folder's.
    """

    Config = RunConfig
    OLD_KEYS: ClassVar[tuple[OldKey, ...]] = (
        OldKey("run.runner", values={"fusion_runner": "trainer"}),
        OldKey("run.lr_sched", values={"fusion_warmup_cosine_lr": "warmup_cosine_lr"}),
        OldKey("run.questions_per_image", "run.examples_per_image"),
    )

    def __init__(
        self,
        cfg: config_loader.Config,
        task: Task,
        model: TrainableModel,
        datasets: dict[str, Any],
        job_id: str = "run",
    ) -> None:
        self.run: RunConfig = cfg.run
        self.declared = by_name(task.metrics(model))
        goal = self.run.metric_goal
        if TRAINING in datasets:
            goal = goal or self._direction(task, model, datasets)
            self.plan = TrainingPlan.of(self.run, datasets)
        super().__init__(cfg, task, model, datasets, job_id)
        if cfg.renamed:
            log.info(told(cfg.renamed))
        for report in model.load_reports:
            log.info(report)
        self._model.to(self.device)
        self.early_stopping = EarlyStopping(goal or "max", self.run.patience, self.run.min_gain)
        self.steps = 0
        self._evaluations: dict[str, Evaluation] = {}
        self.signals = StopSignals()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return distributed.choose_device(self.run.device)

    @property
    def model(self) -> TrainableModel:
        """The model without DDP around it."""
        model: TrainableModel = self._model
        return model

    def setup_output_dir(self) -> None:
        """The run's own folder under ``run.output_dir``: a new one or, to go on, an old one."""
        trains = TRAINING in self.datasets
        self.files = RunFiles(self.config, self.job_id, self._batch_facts if trains else None)
        self.output_dir, self.run_log = self.files.folder, self.files.log
        if distributed.is_main_process():
            self._best = BestWeights(
                self.output_dir, self._model.weights_name, f"model.{self._model.weights_key}"
            )
        if trains and self.files.state is None:
            told = [[each.name, each.unit, each.better] for each in self.declared.values()]
            self.run_log.write("declared", 0, {"metrics": told})

    def train(self) -> dict[str, dict[str, float]]:
        """Train, then report the best weights on ``test_splits``; their metrics by split.

        Ends the process with 143 or 130 after SIGTERM or SIGINT, the run's state saved.
        """
        self.progress = Progress(self.plan.steps, self.plan.validations)
        log.info("%s\n\n%s\n", parts_table(self.model), self.plan)
        self._start_training()
        with self.signals:
            try:
                if self.steps:  # a validation that was due then may have been cut short
                    self._after_step()
                for epoch in range(self.steps // self.plan.steps_an_epoch, self.run.max_epoch):
                    if self._finished:
                        break
                    self.train_epoch(epoch)
                return self._finish()
            except StopRequested as stop:
                saved = self._save()
                distributed.barrier()  # a process that ends gets the others a second signal
                if saved:
                    log.info("%s: the run stopped at step %d, its state is saved", stop, self.steps)
                elif distributed.is_main_process():
                    log.error(
                        "%s: the run stopped at step %d, and %s. %s stands.",
                        stop,
                        self.steps,
                        self._saver.failure,
                        newest_state(self.output_dir),
                    )
                raise SystemExit(128 + stop.signum) from None

    def train_epoch(self, epoch: int) -> None:
        """What remains of an epoch, or of it until the run's last step."""
        self.plan.batches.epoch = epoch
        done = self.steps % self.plan.steps_an_epoch
        self.plan.batches.start = done * self.run.accum_grad_iters
        on_host = self.datasets[TRAINING].on_host
        groups = grouped(self._train_loader, self.run.accum_grad_iters)
        while not self._finished:
            distributed.at(LOADING, self.steps + 1)
            asked = time.perf_counter()
            group = next(groups, None)
            if group is None:
                break
            self.progress.waited(time.perf_counter() - asked)
            distributed.at(COMPUTING, self.steps + 1)
            on_device = [to_device(samples, self.device, on_host) for samples in group]
            skipped = self._stepper.step(on_device, epoch, self.steps)
            self.steps += 1
            self.progress.step()
            ids = [name for samples in group for name in samples.get("ids", [])]
            self._skipped.note(self.steps, skipped, ids)
            self._left_out.note(self.steps, group)
            if self.steps % self.run.log_freq == 0 or self.steps == self.plan.steps:
                self._log_training(epoch)
            self._after_step()

    def _after_step(self) -> None:
        """What is due between two steps: weights to keep, a validation, a state, an end."""
        if distributed.is_main_process():
            self._best.try_again()
        epochs, within = divmod(self.steps, self.plan.steps_an_epoch)
        if not within and self.run.save_freq and epochs % self.run.save_freq == 0:
            self._export_epoch(epochs)
        every = self.run.val_every_steps
        due = self.steps % every == 0 if every else not within
        if due and self._selecting and self._validated_at != self.steps:
            self.validate()
        if self._heed_signals(self._saver.due(self.steps)):
            self._save()

    def validate(self) -> None:
        """Evaluate the validation split; write the best weights if these are the best so far.

        Of several data sets the first one selects.
        """
        started = time.perf_counter()
        metrics = {split: self.eval_epoch(split) for split in self._validated}
        self.progress.validated(time.perf_counter() - started)
        self._validated_at = self.steps
        value = metrics[self._selecting][self.run.metric or ""]
        improved = self.early_stopping.update(value)
        if improved and distributed.is_main_process():
            self._best.take(self._weights(value))
        best = self.early_stopping.best
        if improved:
            outcome = "the best so far"
        elif best is None:
            outcome = "no number, so there is no best yet"
        else:
            outcome = f"best {best:.4f}, {self.early_stopping.waited} before"
        log.info(
            "validation at step %d: %s %.4f on %s, %s",
            self.steps,
            self.run.metric,
            value,
            self._selecting,
            outcome,
        )

    @torch.no_grad()
    def eval_epoch(
        self, split_name: str, *, step: int | None = None, final: bool = False, **_: Any
    ) -> dict[str, float]:
        """Metrics of a split with the weights as they are, which are those of ``step``.

        A ``final`` evaluation has all of them.
        """
        dataset = self.datasets[split_name]
        batches = EvalBatches(
            dataset.image_codes(),
            batch_size=self.run.batch_size_eval,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        loader = Loader(dataset, batches, self.run.num_workers, self.run.data_faults)
        unseen = Unseen(self.run_log)
        distributed.at(EVALUATING, self.steps)
        self.model.eval()
        self.task.before_evaluation(model=self.model, dataset=dataset, final=final)
        on_host = dataset.on_host
        samples = (self._begun(each, on_host) for each in unseen.noted(loader))
        stoppable = self._until_stopped(samples, len(batches)) if self.signals.watching else samples
        # Programs are for training's few shapes; evaluation has a shape for each batch.
        with autocast(self.run, self.device), torch.compiler.set_stance("force_eager"):
            result = self.task.evaluation(self.model, stoppable)
        evaluation = self.task.after_evaluation(result, dataset=dataset, model=self.model)
        train_mode(self.model)
        step = self.steps if step is None else step
        unseen.tell(split_name, step)
        self.run_log.write(split_name, step, evaluation.metrics)
        if evaluation.predictions:
            path = self.output_dir / f"{split_name}_predictions.json"
            write = self.files.must_write if final else self.files.may_write
            write(path, partial(self.task.write_predictions, path, evaluation.predictions))
        if final:
            self._evaluations[split_name] = evaluation
        metrics: dict[str, float] = evaluation.metrics
        return metrics

    def evaluate(
        self, cur_epoch: Any = None, skip_reload: bool = True
    ) -> dict[str, dict[str, float]]:
        """Metrics by split, of the splits that the runner has, with the weights as they are."""
        metrics = {split: self.eval_epoch(split, final=True) for split in self.datasets}
        self._report(metrics)
        return metrics

    def close(self, *, failed: bool = False) -> None:
        """Close the logs, and leave the run's folder to others."""
        self.files.close(failed=failed)

    @property
    def _validated(self) -> list[str]:
        """What validations evaluate: the validation split of each data set."""
        return self._of_validation(self.datasets)

    def _of_validation(self, datasets: Mapping[str, Any]) -> list[str]:
        return [name for name in datasets if split_of(name) in self.run.validation]

    @property
    def _selecting(self) -> str:
        """The one that selects the best weights; empty without validation."""
        return next(iter(self._validated), "")

    @property
    def _finished(self) -> bool:
        return self.early_stopping.should_stop or self.steps >= self.plan.steps

    def _direction(self, task: Task, model: TrainableModel, datasets: dict[str, Any]) -> str | None:
        """Which is better of ``run.metric``. Raises UserError where validations don't have it."""
        metric = self.run.metric or ""
        splits = self._of_validation(datasets)
        for split in splits[:1]:
            reasons = task.not_computed(model, datasets[split])
            if metric not in self.declared:
                known = [name for name in self.declared if name not in reasons]
                raise UserError(
                    f"run.metric is '{metric}', but validations of this run have: "
                    f"{', '.join(known)}.{nearest(metric, self.declared)}"
                )
            if metric in reasons:
                raise UserError(
                    f"run.metric is '{metric}', which isn't computed on '{split}': "
                    f"{reasons[metric]}."
                )
        declared = self.declared.get(metric)
        if splits and self.run.metric_goal is None and (declared is None or not declared.better):
            raise UserError(
                f"run.metric is '{metric}', of which neither more nor less is better; set "
                "run.metric_goal to max or min."
            )
        return declared.better if declared else None

    def _batch_facts(self) -> dict[str, Any]:
        world = distributed.world_size()
        return {
            "examples": len(self.datasets[TRAINING]),
            "processes": world,
            "examples a batch of all processes": self.run.batch_size_train * world,
            "batches an epoch": len(self.plan.batches),
            "layout": self.plan.batches.layout,
        }

    def _begun(self, samples: Any, on_host: tuple[str, ...]) -> Any:
        """A batch of an evaluation, on the device."""
        distributed.at(EVALUATING, self.steps)
        return to_device(samples, self.device, on_host)

    def _until_stopped(self, batches: Iterator[Any], count: int) -> Iterator[Any]:
        """The batches of this process, after each of which all processes may agree to stop."""
        (rounds,) = distributed.greatest([count])
        for _ in range(rounds):
            self._heed_signals()
            if (batch := next(batches, None)) is not None:
                yield batch

    def _heed_signals(self, due: bool = False) -> bool:
        """Whether any process finds a state ``due``. Raises StopRequested if one was told to."""
        signum, due_anywhere = distributed.greatest([self.signals.received, int(due)])
        if signum:
            raise StopRequested(signum)
        return bool(due_anywhere)

    def _start_training(self) -> None:
        self._train_loader = Loader(
            self.datasets[TRAINING],
            self.plan.batches,
            self.run.num_workers,
            self.run.data_faults,
            persistent=True,
        )
        self._skipped = SkippedSteps(self.run.max_skipped_steps, self.run_log)
        self._left_out = LeftOut(self.run.data_faults.most_skipped, self.run_log)
        self._validated_at = -1
        self._saver = StateSaver(self.run, self.output_dir)
        self._stepper = Stepper(self.task, self.model, self.run, self.plan.steps, self.device)
        if self.files.state is not None:
            self._go_on_from(self.files.state)
            self.files.state = None  # it is as large as the model and the optimizer

    def _go_on_from(self, state: RunState) -> None:
        """Restore the run that ``state`` was saved of."""
        distributed.from_main_process(lambda: self._best.go_on(state.best_step))
        self.steps = state.step
        self.early_stopping.best, self.early_stopping.waited = state.best, state.waited
        self._validated_at = state.validated_at
        self._skipped.total = state.skipped
        self._skipped.in_a_row = state.skipped_in_a_row
        self._left_out.total = state.left_out
        self._saver.found((state.step, state.validated_at))
        self.progress.resume(state.step, state.progress)
        if state.versions != versions():
            log.info("the state was saved by %s; now these are %s", state.versions, versions())
        log.info("the run goes on after step %d, in %s", state.step, self.output_dir)
        self._stepper.load(state)

    def _save(self) -> bool:
        """Save the run's state, unless it is that of the file already; whether it is on the disk.

        Where it can't be written, the one before it stands, and training goes on.
        """
        self._settle()
        moment = (self.steps, self._validated_at)
        return self._saver.save(moment, self._stepper.rank_state, self._write_state)

    def _write_state(self, ranks: list[RankState]) -> None:
        """Write the state, and the weights that it goes with."""
        model, optimizer = self._stepper.tensors()
        self._best.write()
        RunState(
            step=self.steps,
            model=model,
            optimizer=optimizer,
            ranks=ranks,
            validated_at=self._validated_at,
            best=self.early_stopping.best,
            best_step=self._best.step,
            waited=self.early_stopping.waited,
            skipped=self._skipped.total,
            skipped_in_a_row=self._skipped.in_a_row,
            left_out=self._left_out.total,
            progress=self.progress.facts(),
            log=self.run_log.position(),
            batches=self._batch_facts(),
            config=self.files.resolved,
            versions=versions(),
        ).save(self.output_dir)
        self._best.tidy()

    def _settle(self) -> None:
        """Count what was noted of the steps since the last call."""
        self._skipped.settle()
        self._left_out.settle()

    def _log_training(self, epoch: int) -> None:
        """A line on the steps since the last one, over all processes."""
        self._settle()
        metrics, examples = self._stepper.window()
        window = self.progress.window(examples)
        learning_rate = self._stepper.learning_rate
        self.run_log.write(
            "train",
            self.steps,
            {
                **metrics,
                "skipped_steps": self._skipped.total,
                "lr": learning_rate,
                "examples_per_second": window.rate,
                "waiting_for_data": window.waiting,
                "epoch": epoch,
            },
        )
        parts = ", ".join(
            f"{name.removesuffix('_loss')} {value:.3f}"
            for name, value in metrics.items()
            if name.endswith("_loss")
        )
        log.info(
            "epoch %d/%d  step %d/%d  loss %.4f%s  lr %.1e  %.3g %s/s  %s left",
            epoch + 1,
            self.run.max_epoch,
            self.steps,
            self.plan.steps,
            metrics.get("loss", float("nan")),
            f" ({parts})" if parts else "",
            learning_rate,
            window.rate,
            self.plan.noun,
            duration(self.progress.seconds_left),
        )
        if window.waiting > MUCH_WAITING:
            log.info(
                "the data are late: %.0f %% of the time no batch was ready. More run.num_workers "
                "help (now %d, and %d cores), or smaller images on disk.",
                100 * window.waiting,
                self.run.num_workers,
                len(os.sched_getaffinity(0)),
            )

    def _finish(self) -> dict[str, dict[str, float]]:
        """Validate what hasn't been, save the state, load the best weights, report them."""
        if self._selecting and self._validated_at != self.steps:
            self.validate()
        stopped = self.early_stopping.should_stop
        log.info(
            "training ends at step %d after %s%s",
            self.steps,
            duration(self.progress.elapsed),
            f": no gain in {self.early_stopping.waited} validations" if stopped else "",
        )
        if not self._selecting and distributed.is_main_process():
            self._best.take(self._weights(None))
        path = self._weights_file("best")
        self.files.must_write(path, lambda: self._best.write())
        if not self._save():
            raise UserError(f"{self._saver.failure}. {self.files.way_on}")
        best = TrainedWeights.load(path, key=f"model.{self.model.weights_key}")
        state = best.renamed(self.model.OLD_PARAMETERS)
        load_into(self.model, state, name=path.name, allow_missing=["*"])
        wanted = {*self.run.validation, *self.run.testing}
        splits = [name for name in self.datasets if split_of(name) in wanted]
        metrics = {split: self.eval_epoch(split, step=best.step, final=True) for split in splits}
        log.info("\nbest weights, of step %d: %s\n", best.step, path)
        self._report(metrics)
        return metrics

    def _report(self, metrics: dict[str, dict[str, float]]) -> None:
        distributed.at(ENDING, self.steps)
        folder = self.output_dir
        for split, evaluation in self._evaluations.items():
            path = folder / f"{split}_scores.json"
            self.files.must_write(path, partial(_write_scores, path, evaluation))
        if metrics:
            log.info("%s\n", metrics_table(metrics, self.declared))
        reasons = {split: each.not_computed for split, each in self._evaluations.items()}
        if any(reasons.values()):
            log.info("%s\n", reasons_list(reasons))
        for split, values in metrics.items():
            if line := self.task.headline(split, values):
                log.info(line)
        if self.run.report and self._evaluations:
            self.files.must_write(folder / REPORT, self._write_report)
        # The last of all: a run that has it is finished, and isn't resumed.
        self.files.must_write(folder / METRICS, partial(write_json, folder / METRICS, metrics))
        log.info("metrics and predictions are in %s", self.output_dir)

    def _write_report(self) -> None:
        splits = {
            split: self.task.reported(split, self.datasets[split], self.model, evaluation)
            for split, evaluation in self._evaluations.items()
        }
        trained = TRAINING in self.datasets
        log.info("report: %s", write_run_report(self.output_dir, self.config, splits, trained))

    def _weights_file(self, which: str) -> Path:
        return self.output_dir / f"{self.model.weights_name}_{which}.safetensors"

    def _weights(self, value: float | None) -> TrainedWeights:
        return TrainedWeights(
            state=self.model.exported_state(),
            config=self.files.resolved,
            metric=self.run.metric if value is not None else None,
            value=value,
            step=self.steps,
            facts=self.model.exported_facts(),
        )

    def _export_epoch(self, epoch: int) -> None:
        path = self._weights_file(f"epoch{epoch}")
        self.files.may_write(path, lambda: self._weights(None).save(path))


def _write_scores(path: Path, evaluation: Evaluation) -> None:
    """The task's scores of a split, where it has more than its metrics."""
    if evaluation.scores is not None:
        write_json(path, dict(evaluation.scores))


class Stepper:
    """Optimizer steps, in step with the other processes, and sums over what batches report.

    Seeds torch's random numbers, differently in each process.

    Args:
        task: the task.
        model: the model, on ``device``, in the same state in every process, frozen but for what is
            trained.
        run: the section ``run``.
        total_steps: the steps that the schedule is made for.
        device: where this process computes.

    Attributes:
        optimizer: AdamW over what is trained.
    """

    def __init__(
        self,
        task: Task,
        model: TrainableModel,
        run: RunConfig,
        total_steps: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(run.seed + distributed.rank())
        self._task, self._model, self._run, self._device = task, model, run, device
        self._window: dict[str, Tensor] = {}
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._wrapped: Any = model
        if distributed.world_size() > 1:
            # A frozen encoder's class embedding has a gradient of other strides; torch warns.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            self._wrapped = DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                find_unused_parameters=model.may_leave_unused(self._parameters),
            )
        train_mode(model)
        self._buffers = _buffers_in_training(model)
        self.optimizer = make_optimizer(self._parameters, run)
        self._schedule = registry.get_lr_scheduler_class(run.lr_sched)(
            optimizer=self.optimizer,
            max_steps=total_steps,
            init_lr=run.init_lr,
            min_lr=run.min_lr,
            max_epoch=run.max_epoch,
            decay_rate=run.lr_decay_rate,
            warmup_steps=run.warmup_steps,
            warmup_start_lr=run.warmup_lr,
        )
        if run.compile:
            _compile(model, run.compile_backend)

    @classmethod
    def for_timing(
        cls, task: Task, model: TrainableModel, run: RunConfig, device: torch.device
    ) -> "Stepper":
        """A stepper with learning rate 0, for timing: real cost, no update."""
        return cls(task, model, replace(run, init_lr=0.0, min_lr=0.0, warmup_lr=0.0), 1, device)

    @property
    def learning_rate(self) -> float:
        """That of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def step(self, group: list[Any], epoch: int, step: int) -> Tensor:
        """One optimizer step on the batches of ``group``, each example weighing the same.

        Returns 1, on the device and in every process, if the loss or a gradient isn't finite; then
        nothing has changed, and nothing has waited to see it.
        """
        self._schedule.step(cur_epoch=epoch, cur_step=step)
        examples = sum(samples["global_size"] for samples in group)
        for place, samples in enumerate(group):
            last = place == len(group) - 1
            waits = last or distributed.world_size() == 1
            with nullcontext() if waits else self._wrapped.no_sync():
                with autocast(self._run, self._device):
                    output: StepOutput = self._task.train_step(self._wrapped, samples)
                    loss = total_loss(output)
                counts = not samples.get("stand_in", False)
                # 1 or, for a loss that isn't finite, NaN: then all gradients are, everywhere.
                finite = loss.detach() * 0 + 1
                # The one place where losses are divided. DDP takes the mean over processes, the
                # loss is this process's part of the sum.
                share = counts * distributed.world_size() * finite
                (loss / examples * share).backward()
            report = {"loss": loss.detach(), **output.report}
            self._count(report, output.examples, (finite == 1) & counts)
        parameters = list(self._parameters.values())
        if self._run.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(parameters, self._run.max_grad_norm)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        skipped = (~torch.isfinite(norm)).float()
        cast(Any, self.optimizer).found_inf = skipped  # as torch's GradScaler does
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return skipped

    def window(self) -> tuple[dict[str, float], float]:
        """Means over the examples since the last call, in all processes, and their number.

        Batches whose loss wasn't finite are left out; where there was nothing else, there are no
        means.
        """
        names = sorted(self._window)
        sums = distributed.sum_over_processes(torch.stack([self._window[n] for n in names]))
        metrics = dict(zip(names, sums.tolist(), strict=True))
        self._window.clear()
        examples = metrics.pop(EXAMPLES)
        return {n: value / examples for n, value in metrics.items() if examples}, examples

    def tensors(self) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """What training changes of the model by name, and the optimizer's tensors by parameter."""
        buffers = {name: self._model.get_buffer(name) for name in self._buffers}
        optimizer = optimizer_tensors(self.optimizer, self._parameters)
        return {**self._parameters, **buffers}, optimizer

    def rank_state(self) -> RankState:
        """State that differs between ranks: random generators and loss sums."""
        random, generators = random_states(self._device)
        return RankState(random, {n: value.cpu() for n, value in self._window.items()}, generators)

    def load(self, state: RunState) -> None:
        """Restore what ``tensors`` and, in each process, ``rank_state`` gave.

        With more processes than then the new ones keep their seed; with fewer they share the sums.
        Raises UserError where other parameters are trained.
        """
        model = state.renamed_model(self._model.OLD_PARAMETERS)
        optimizer = state.renamed_optimizer(self._model.OLD_PARAMETERS)
        if differing := sorted(model.keys() ^ {*self._parameters, *self._buffers}):
            raise UserError(
                "run.resume: the state and the model have other trained parameters: "
                f"{listed(differing)}. Set run.trainable back, or go on with the code that the run "
                "was started with."
            )
        load_into(self._model, dict(model), name="run.resume", allow_missing=["*"])
        load_optimizer(self.optimizer, self._parameters, optimizer)
        rank = distributed.rank()
        for each in state.ranks[rank :: distributed.world_size()]:
            self._add({name: value.to(self._device) for name, value in each.window.items()})
        if rank < len(state.ranks):
            own = state.ranks[rank]
            set_random_states(dict(own.random), own.generators, self._device)

    def _count(self, report: Mapping[str, Tensor], examples: int, counts: Tensor) -> None:
        sums = {**report, EXAMPLES: torch.tensor(float(examples), device=self._device)}
        self._add({n: torch.where(counts, v, torch.zeros_like(v)) for n, v in sums.items()})

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        for name, value in sums.items():
            self._window[name] = self._window.get(name, torch.zeros_like(value)) + value


EXAMPLES = "examples"
"""The number of examples, among the sums of a window."""


def _buffers_in_training(model: nn.Module) -> list[str]:
    """Names of the buffers, of those that weights come with, of modules in training mode."""
    saved = model.state_dict().keys()
    names = [
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        if module.training
        for name, _ in module.named_buffers(recurse=False)
    ]
    return [name for name in names if name in saved]


def _compile(model: TrainableModel, backend: str) -> None:
    """Compile what training passes, on its first batches.

    Raises UserError where inductor would find no C++ compiler in the middle of the first step.
    """
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if backend == "inductor" and not any(map(shutil.which, compilers)):
        raise UserError(
            f"run.compile: inductor needs a C++ compiler, and finds no {' or '.join(compilers)}. "
            "Install one, or name it in the environment variable CXX, or leave run.compile out."
        )
    model.compile_parts(backend)


def autocast(run: RunConfig, device: torch.device) -> Any:
    """bfloat16 where the run asks for it. Its range is float32's, so that nothing is scaled."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.amp)


def grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The batches of each step."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
