"""The runner ``trainer``: the training loop, validation, checkpoints and evaluation.

One step: ``Trainer.train_epoch`` takes batches from the loader, ``Stepper.step`` updates the
weights, and ``Trainer._after_step`` validates or saves a checkpoint when one is due.
"""

import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavis_ext import distributed
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import load_into
from lavis_ext.common.errors import UserError, listed, nearest, shortened
from lavis_ext.common.files import write_json
from lavis_ext.common.grouping import grouped
from lavis_ext.common.metrics import LOSS, by_name
from lavis_ext.common.progress import ProgressLine
from lavis_ext.config import loader as config_loader
from lavis_ext.config.renamed import OldKey, renamed_line
from lavis_ext.datasets.base import to_device
from lavis_ext.datasets.loader import Loader
from lavis_ext.datasets.mixed import split_of
from lavis_ext.datasets.samplers import BatchRows, EvalBatches
from lavis_ext.distributed.peers import COMPUTING, ENDING, EVALUATING, LOADING
from lavis_ext.distributed.sharding import (
    GradientAverages,
    clip_gradients,
    shard,
    shares,
    whole,
)
from lavis_ext.evaluation.by_image import BY_IMAGE
from lavis_ext.evaluation.report.content import ReportedSplit
from lavis_ext.evaluation.table import metrics_table, reasons_list
from lavis_ext.models.base import StepOutput, TrainableModel, total_loss
from lavis_ext.models.lora import file_name
from lavis_ext.registry import RunnerBase, registry
from lavis_ext.runners.best_weights import BestWeights
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.faults import LeftOut, SkippedSteps, Unseen
from lavis_ext.runners.freezing import parts_table, train_mode, trained_parameters
from lavis_ext.runners.optimizer import (
    groups_table,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    scale_rates,
)
from lavis_ext.runners.plan import TRAINING, TrainingPlan
from lavis_ext.runners.progress import (
    EarlyStopping,
    EvaluationProgress,
    Progress,
    duration,
    with_progress,
)
from lavis_ext.runners.reporting import REPORT, training_facts, write_run_report
from lavis_ext.runners.resuming import GLOBAL_BATCH
from lavis_ext.runners.run_files import RunFiles
from lavis_ext.runners.run_folder import FAILED, FINISHED, METRICS, STOPPED, versions
from lavis_ext.runners.run_log import log
from lavis_ext.runners.saved_steps import (
    SavedSteps,
    evaluation_facts,
    key_of,
    remove_saved_steps,
)
from lavis_ext.runners.state import (
    RankState,
    RunState,
    StateSaver,
    TrainedTensors,
    newest_state,
    random_states,
    set_random_states,
)
from lavis_ext.runners.status_file import StatusFile
from lavis_ext.runners.stop_signals import StopRequested, StopSignals
from lavis_ext.tasks.base import Evaluation, Task

MUCH_WAITING = 0.1
"""Share of the time spent waiting for data above which the log warns."""
FIRST_LINE_SECONDS = 3.0
"""Seconds of training after which a line tells the progress, if ``run.log_freq`` has told none."""


@registry.register_runner("trainer")
class Trainer(RunnerBase):
    """Trains the parameters of ``run.trainable`` and exports the best weights.

    All processes call every method together; only the main process writes files.

    Args:
        cfg: the run's config.
        task: the task.
        model: the model, in the same state in every process, with only the trained parameters
            unfrozen.
        datasets: data sets by role: ``train``, and each split that is evaluated.
        job_id: prefix of the name of the run's folder.
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
        units = placed(model, self.run, self.device)
        super().__init__(cfg, task, model, datasets, job_id)
        if units:
            log.info("sharded among %d processes: %s", distributed.world_size(), listed(units))
        if cfg.renamed:
            log.info(renamed_line(cfg.renamed))
        for report in model.load_reports:
            log.info(report)
        if TRAINING in datasets:
            for warning in self.plan.warnings:
                log.warning(warning)
        self.early_stopping = EarlyStopping(goal or "max", self.run.patience, self.run.min_gain)
        self.steps = 0
        self._evaluations: dict[str, Evaluation] = {}
        self._validations: dict[str, Evaluation] = {}
        self._line = ProgressLine.logged(log, only_terminal=True)
        self.signals = StopSignals()
        self.progress = Progress(0, 0)
        self._evaluation: EvaluationProgress | None = None
        self._stopped_by = ""
        self._status_file: StatusFile | None = None
        if distributed.is_main_process():
            self._status_file = StatusFile(self.output_dir, self._status)

    def _status(self) -> dict[str, Any]:
        """Facts for ``status.json``; called in another thread."""
        evaluation = self._evaluation
        facts: dict[str, Any] = {"evaluation": None if evaluation is None else evaluation._asdict()}
        progress = self.progress
        if progress.total_steps:
            facts |= {
                "step": progress.steps,
                "steps": progress.total_steps,
                "steps_per_second": 1 / max(progress.seconds_per_step, 1e-9),
                "seconds_left": progress.seconds_left,
                "untimed_evaluations": progress.untimed,
                "metric": self.run.metric,
                "best": self.early_stopping.best,
            }
        return facts

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return distributed.choose_device(self.run.device)

    @property
    def model(self) -> TrainableModel:
        """The model, unwrapped from DDP."""
        model: TrainableModel = self._model
        return model

    def setup_output_dir(self) -> None:
        """Set ``output_dir`` to the folder of the new or resumed run."""
        trains = TRAINING in self.datasets
        self.files = RunFiles(self.config, self.job_id, self._batch_facts if trains else None)
        self.output_dir, self.run_log = self.files.folder, self.files.log
        if distributed.is_main_process():
            self._best = BestWeights(
                self.output_dir, self._model.weights_name, f"model.{self._model.weights_key}"
            )
        if trains and self.files.state is None:
            rows = [[each.name, each.unit, each.better] for each in self.declared.values()]
            self.run_log.write("declared", 0, {"metrics": rows})

    def train(self) -> dict[str, dict[str, float]]:
        """Train, then evaluate the best weights on ``test_splits``; returns metrics by split.

        After SIGTERM, SIGINT or SIGHUP, saves the state and exits with code 143, 130 or 129.
        """
        self.progress = Progress(self.plan.steps, self.plan.validations_worth)
        self._first_line_at: float | None = time.monotonic() + FIRST_LINE_SECONDS
        log.info("%s\n\n%s\n", parts_table(self.model), self.plan.facts())
        if self.run.parameter_groups:
            log.info("%s\n", groups_table(trained_parameters(self.model), self.run))
        self._start_training()
        with self.signals, self._line:
            try:
                if self.steps:  # the signal may have interrupted a validation
                    self._after_step()
                for epoch in range(self.steps // self.plan.steps_per_epoch, self.run.max_epoch):
                    if self._finished:
                        break
                    self.train_epoch(epoch)
                return self._finish()
            except StopRequested as stop:
                self._stopped_by = str(stop)
                saved = self._save()
                distributed.barrier()  # torchrun signals the others once a process exits
                if saved:
                    log.info(
                        "%s: the run stopped at step %d and saved its state. To continue it, give "
                        "the same command with --options run.resume=%s",
                        stop,
                        self.steps,
                        self.output_dir,
                    )
                elif distributed.is_main_process():
                    log.error(
                        "%s: the run stopped at step %d, but %s. %s is kept.",
                        stop,
                        self.steps,
                        self._saver.failure,
                        newest_state(self.output_dir),
                    )
                raise SystemExit(128 + stop.signum) from None

    def train_epoch(self, epoch: int) -> None:
        """Train the rest of an epoch, up to the run's last step at most."""
        self.plan.batches.epoch = epoch
        done = self.steps % self.plan.steps_per_epoch
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
            elif self._first_line_at is not None and time.monotonic() >= self._first_line_at:
                self._first_line_at = None
                log.info("step %d/%d  %s", self.steps, self.plan.steps, self.progress.time_left)
            self._line.update(
                f"step {self.steps:,} of {self.plan.steps:,}, {self.progress.time_left}"
            )
            self._after_step()

    def _after_step(self) -> None:
        """Export, validate, save or stop after a step, each if due."""
        if distributed.is_main_process():
            self._best.retry()
        epochs, within = divmod(self.steps, self.plan.steps_per_epoch)
        if not within and self.run.save_freq and epochs % self.run.save_freq == 0:
            self._export_epoch(epochs)
        every = self.run.val_every_steps
        due = self.steps % every == 0 if every else not within
        if due and self._selecting and self._validated_at != self.steps:
            self.validate()
        if self._heed_signals(self._saver.due(self.steps)):
            self._save()

    def validate(self) -> None:
        """Evaluate the validation split and keep the weights if they are the best so far.

        With several data sets, the first one selects the best weights.
        """
        self._line.close()
        started = time.perf_counter()
        self.progress.begin_validation()
        metrics = {split: self.eval_epoch(split) for split in self._validated}
        self.progress.validated(time.perf_counter() - started)
        self._validated_at = self.steps
        value = metrics[self._selecting][self.run.metric or ""]
        improved = self.early_stopping.update(value)
        if improved:
            self._take_best(value)
        best = self.early_stopping.best
        if improved:
            outcome = "the best so far"
        elif best is None:
            outcome = "not a number, so there are no best weights yet"
        else:
            outcome = f"best {best:.4f}, {self.early_stopping.waited} validation(s) ago"
        log.info(
            "validation at step %d: %s %.4f on %s, %s",
            self.steps,
            self.run.metric,
            value,
            self._selecting,
            outcome,
        )
        if self.run.report and self._validations:
            self.files.may_write(self.output_dir / REPORT, self._write_interim_report)
        self._validations.clear()

    @torch.no_grad()
    def eval_epoch(
        self, split_name: str, *, step: int | None = None, final: bool = False, **_: Any
    ) -> dict[str, float]:
        """Evaluate a split with the current weights, those of ``step``.

        Only a ``final`` evaluation computes all metrics.
        """
        dataset = self.datasets[split_name]
        # A forward pass of a sharded model involves all processes, so each evaluates all batches,
        # and only the main process's results count.
        together = self.run.sharding is not None
        counts = not together or distributed.is_main_process()
        batches = [
            *EvalBatches(
                dataset.image_codes(),
                batch_size=self.run.batch_size_eval,
                rank=0 if together else distributed.rank(),
                world_size=1 if together else distributed.world_size(),
                images_per_batch=self.run.images_per_batch,
            )
        ]
        saved = self._saved_steps(split_name, batches, counts) if final else None
        if saved is not None:
            batches = saved.left
        loader = Loader(dataset, batches, self.run.num_workers, self.run.data_faults)
        unseen = Unseen(self.run_log)
        distributed.at(EVALUATING, self.steps)
        self.model.eval()
        self.task.before_evaluation(model=self.model, dataset=dataset, final=final)
        on_host = dataset.on_host
        line = ProgressLine.logged(log, only_terminal=True)
        noted = unseen.noted(loader) if counts else loader
        show = partial(self._show_evaluation, line)
        noted = with_progress(noted, split_name, len(batches), show)
        samples = (self._moved(each, on_host) for each in noted)
        stoppable = self._until_stopped(samples, len(batches)) if self.signals.watching else samples
        # Compiled code is for training's few shapes; every evaluation batch has a shape of its own.
        with autocast(self.run, self.device), torch.compiler.set_stance("force_eager"), line:
            if saved is None:
                result = self.task.evaluation(self.model, stoppable)
            else:
                for each in saved.earlier:
                    unseen.add(each.unreadable)
                steps = [each.step for each in saved.earlier]
                result = self.task.evaluation(self.model, stoppable, earlier=steps, save=saved.add)
                saved.close()
        self._evaluation = None
        if not counts:
            result = result.emptied()
        evaluation = self.task.after_evaluation(result, dataset=dataset, model=self.model)
        train_mode(self.model)
        step = self.steps if step is None else step
        unseen.report(split_name, step)
        self.run_log.write(split_name, step, evaluation.metrics)
        if evaluation.predictions:
            path = self.output_dir / f"{split_name}_predictions.json"
            write = self.files.must_write if final else self.files.may_write
            write(path, partial(self.task.write_predictions, path, evaluation.predictions))
        (self._evaluations if final else self._validations)[split_name] = evaluation
        metrics: dict[str, float] = evaluation.metrics
        return metrics

    def _show_evaluation(self, line: ProgressLine, progress: EvaluationProgress) -> None:
        self._evaluation = progress
        line.update(str(progress))

    def evaluate(
        self, cur_epoch: Any = None, skip_reload: bool = True
    ) -> dict[str, dict[str, float]]:
        """Evaluate all splits with the current weights; returns metrics by split.

        An interrupted evaluation continues with the batches that are left (``run.resume``).
        """
        self._begin_evaluation(self.datasets)
        metrics = {split: self.eval_epoch(split, final=True) for split in self.datasets}
        self._report(metrics)
        return metrics

    def close(self, *, failed: bool = False) -> None:
        """Close the logs and unlock the run's folder."""
        if self._status_file is not None:
            error = sys.exception() if failed else None
            reason = "" if error is None else shortened(str(error) or type(error).__name__, 200)
            state = STOPPED if self._stopped_by else FAILED if failed else FINISHED
            self._status_file.close(state, self._stopped_by or reason)
        self.files.close(failed=failed)

    @property
    def _validated(self) -> list[str]:
        """The validation split of each data set."""
        return self._of_validation(self.datasets)

    def _of_validation(self, datasets: Mapping[str, Any]) -> list[str]:
        return [name for name in datasets if split_of(name) in self.run.validation]

    @property
    def _selecting(self) -> str:
        """The split that selects the best weights; empty without validation."""
        return next(iter(self._validated), "")

    @property
    def _finished(self) -> bool:
        return self.early_stopping.should_stop or self.steps >= self.plan.steps

    def _direction(self, task: Task, model: TrainableModel, datasets: dict[str, Any]) -> str | None:
        """The better direction of ``run.metric``. Raises UserError if validations lack it."""
        metric = self.run.metric or ""
        splits = self._of_validation(datasets)
        for split in splits[:1]:
            reasons = task.not_computed(model, datasets[split])
            if metric not in self.declared:
                known = [name for name in self.declared if name not in reasons]
                raise UserError(
                    f"run.metric is '{metric}', but this run's validations compute: "
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
                f"run.metric is '{metric}', which declares no better direction; set "
                "run.metric_goal to max or min."
            )
        return declared.better if declared else None

    def _batch_facts(self) -> dict[str, Any]:
        world = distributed.world_size()
        return {
            "examples": len(self.datasets[TRAINING]),
            "processes": world,
            GLOBAL_BATCH: self.run.examples_per_batch * world,
            "batches an epoch": len(self.plan.batches),
            "layout": self.plan.batches.layout,
        }

    def _moved(self, samples: Any, on_host: tuple[str, ...]) -> Any:
        """Report progress and move an evaluation batch to the device."""
        distributed.at(EVALUATING, self.steps)
        return to_device(samples, self.device, on_host)

    def _until_stopped(self, batches: Iterator[Any], count: int) -> Iterator[Any]:
        """Yield this process's batches, checking before each whether to stop."""
        (rounds,) = distributed.greatest([count])
        for _ in range(rounds):
            self._heed_signals()
            if (batch := next(batches, None)) is not None:
                yield batch

    def _heed_signals(self, due: bool = False) -> bool:
        """Whether a save is ``due`` in any process. Raises StopRequested if any got a signal."""
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
            self._resume_from(self.files.state)
            self.files.state = None  # free it: the size of model and optimizer

    def _resume_from(self, state: RunState) -> None:
        """Resume from ``state``."""
        distributed.from_main_process(lambda: self._best.restore(state.best_step))
        self.steps = state.step
        self.early_stopping.best, self.early_stopping.waited = state.best, state.waited
        self._validated_at = state.validated_at
        self._skipped.total = state.skipped
        self._skipped.in_a_row = state.skipped_in_a_row
        self._left_out.total = state.left_out
        self._saver.mark_saved((state.step, state.validated_at))
        self.progress.resume(state.step, state.progress)
        if state.versions != versions():
            log.info(
                "the state was saved with %s; current versions: %s", state.versions, versions()
            )
        log.info("resuming after step %d, in %s", state.step, self.output_dir)
        self._stepper.load(state)

    def _save(self) -> bool:
        """Save the run's state unless it is on disk already; True if it is there now.

        If it can't be written, the previous state is kept and training continues.
        """
        self._settle()
        moment = (self.steps, self._validated_at)
        return self._saver.save(
            moment, self._stepper.rank_state, self._stepper.tensors, self._write_state
        )

    def _write_state(self, ranks: list[RankState], tensors: TrainedTensors) -> None:
        """Write the state and its best weights."""
        model, optimizer = tensors
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
        """Count skipped steps and left-out examples since the last call."""
        self._skipped.settle()
        self._left_out.settle()

    def _log_training(self, epoch: int) -> None:
        """Log metrics over all processes and the steps since the last line."""
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
            "epoch %d/%d  step %d/%d  loss %.4f%s  lr %.1e  %.3g %s/s  %s",
            epoch + 1,
            self.run.max_epoch,
            self.steps,
            self.plan.steps,
            metrics.get(LOSS, float("nan")),
            f" ({parts})" if parts else "",
            learning_rate,
            window.rate,
            self.plan.noun,
            self.progress.time_left,
        )
        self._first_line_at = None
        if window.waiting > MUCH_WAITING:
            log.info("%s", _waiting_advice(window.waiting, self.run.num_workers))

    def _finish(self) -> dict[str, dict[str, float]]:
        """Run the last validation, save the state, and evaluate the best weights."""
        if self._selecting and self._validated_at != self.steps:
            self.validate()
        self._line.close()
        stopped = self.early_stopping.should_stop
        log.info(
            "training ends at step %d after %s%s",
            self.steps,
            duration(self.progress.elapsed),
            f": no improvement in {self.early_stopping.waited} validations" if stopped else "",
        )
        if not self._selecting:
            self._take_best(None)
        path = self._weights_file("best")
        self.files.must_write(path, lambda: self._best.write())
        if not self._save():
            raise UserError(f"{self._saver.failure}. {self.files.remedy}")
        key = f"model.{self.model.weights_key}"
        best = distributed.from_shared_file(path, partial(TrainedWeights.load, key=key))
        state = self.model.own_names(best, path.name)
        load_into(self.model, shares(self.model, state), name=path.name, allow_missing=["*"])
        wanted = {*self.run.validation, *self.run.testing}
        splits = [name for name in self.datasets if split_of(name) in wanted]
        self._begin_evaluation(splits)
        metrics = {split: self.eval_epoch(split, step=best.step, final=True) for split in splits}
        log.info("\nbest weights, of step %d: %s\n", best.step, path)
        self._report(metrics)
        return metrics

    def _begin_evaluation(self, splits: Iterable[str]) -> None:
        datasets = {split: self.datasets[split] for split in splits}
        self._evaluated = evaluation_facts(self.model, datasets, self.files.resolved)
        self.files.begin_evaluation(self._evaluated)

    def _saved_steps(self, split: str, batches: list[BatchRows], writes: bool) -> SavedSteps:
        """Batches of a final evaluation saved before it was interrupted."""
        key = key_of(self._evaluated, split)
        saved = SavedSteps(self.output_dir, split, key, batches, writes=writes)
        if saved.count:
            log.info(
                "%s: %d of %d %s were evaluated before the interruption",
                split,
                saved.count,
                len(self.datasets[split]),
                self.datasets[split].noun,
            )
        return saved

    def _report(self, metrics: dict[str, dict[str, float]]) -> None:
        distributed.at(ENDING, self.steps)
        folder = self.output_dir
        for split, evaluation in self._evaluations.items():
            path = folder / f"{split}_scores.json"
            self.files.must_write(path, partial(_write_scores, path, evaluation))
            self.files.must_write(
                folder / f"{split}{BY_IMAGE}", partial(self._write_by_image, split, evaluation)
            )
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
        # Written last: it marks the run as finished, so it isn't resumed.
        self.files.must_write(folder / METRICS, partial(write_json, folder / METRICS, metrics))
        if distributed.local_rank() == 0:  # once per machine
            remove_saved_steps(folder)
        log.info("metrics and predictions are in %s", self.output_dir)

    def _write_report(self) -> None:
        splits = self._reported(self._evaluations)
        training = self._training_facts() if TRAINING in self.datasets else None
        path = write_run_report(self.output_dir, self.config, splits, training)
        log.info("report: %s", path)

    def _write_interim_report(self) -> None:
        """Write the report of the last validation, without examples."""
        new = not (self.output_dir / REPORT).exists()
        splits = self._reported(self._validations)
        training = {"state": "training goes on", **self._training_facts()}
        path = write_run_report(self.output_dir, self.config, splits, training)
        if new:
            log.info("report: %s, refreshed after each validation", path)

    def _training_facts(self) -> dict[str, str]:
        return training_facts(
            self.plan,
            self.model,
            steps=self.steps,
            best=self._best.step,
            seconds=self.progress.elapsed,
        )

    def _reported(self, evaluations: Mapping[str, Evaluation]) -> dict[str, ReportedSplit]:
        return {
            split: self.task.reported(split, self.datasets[split], self.model, evaluation)
            for split, evaluation in evaluations.items()
        }

    def _write_by_image(self, split: str, evaluation: Evaluation) -> None:
        found = self.task.by_image(self.datasets[split], evaluation)
        if found is not None:
            found.write(self.output_dir / f"{split}{BY_IMAGE}")

    def _weights_file(self, which: str) -> Path:
        return self.output_dir / f"{self.model.weights_name}_{which}.safetensors"

    def _take_best(self, value: float | None) -> None:
        weights = self._weights(value)
        if distributed.is_main_process():
            self._best.take(weights)

    def _weights(self, value: float | None) -> TrainedWeights:
        """Current weights, in the main process only. Called by every process."""
        state = self.model.exported_state()
        return TrainedWeights(
            state={file_name(name): whole(tensor) for name, tensor in state.items()},
            config=self.files.resolved,
            metric=self.run.metric if value is not None else None,
            value=value,
            step=self.steps,
            facts=self.model.exported_facts(),
        )

    def _export_epoch(self, epoch: int) -> None:
        path = self._weights_file(f"epoch{epoch}")
        weights = self._weights(None)
        self.files.may_write(path, lambda: weights.save(path))


def placed(model: TrainableModel, run: RunConfig, device: torch.device) -> list[str]:
    """Move ``model`` to ``device``, sharded if configured; returns the sharded modules' names.

    Called by every process.
    """
    sharding = run.sharding is not None
    units = shard(model, run.sharded(model), device) if sharding else []
    model.to(device)
    return units


def _waiting_advice(share: float, workers: int) -> str:
    """A line about waiting for data; more workers than a process has cores don't help."""
    cores = max(1, len(os.sched_getaffinity(0)) // distributed.local_world_size())
    waiting = f"waiting for data {100 * share:.0f} % of the time."
    if workers < cores:
        return (
            f"{waiting} Increase run.num_workers (now {workers}, with {cores} cores), or store "
            "smaller images."
        )
    return (
        f"{waiting} The {cores} core(s) of this process are busy with run.num_workers={workers}: "
        "store smaller images, or the encoders' features (run.features)."
    )


def _write_scores(path: Path, evaluation: Evaluation) -> None:
    """Write the task's scores of a split, if it has more than its metrics."""
    if evaluation.scores is not None:
        write_json(path, dict(evaluation.scores))


class Stepper:
    """Takes optimizer steps in all processes together, and sums the batches' metrics.

    Seeds torch's random generator, differently in each process.

    Args:
        task: the task.
        model: the model, on ``device``, in the same state in every process, with only the trained
            parameters unfrozen.
        run: the section ``run``.
        total_steps: length of the schedule in steps.
        device: this process's device.

    Attributes:
        optimizer: AdamW over the trained parameters.
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
        self._parameters = trained_parameters(model)
        self._wrapped: Any = model
        self._averages: GradientAverages | None = None
        if run.sharding is not None:
            self._averages = GradientAverages(model)
        elif distributed.world_size() > 1:
            # The gradient of a class embedding beside a frozen encoder has other strides.
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
        run = replace(run, init_lr=0.0, min_lr=0.0, warmup_lr=0.0, parameter_groups=None)
        return cls(task, model, run, 1, device)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step, before ``run.parameter_groups``."""
        group = self.optimizer.param_groups[0]
        rate: float = group["lr"] / group["scale"]
        return rate

    def step(self, group: list[Any], epoch: int, step: int) -> Tensor:
        """Take an optimizer step on the batches of ``group``, each example weighted equally.

        Returns a device flag: 1, in every process, if the loss or a gradient isn't finite, in which
        case the update is skipped. Doesn't synchronize with the device.
        """
        self._schedule.step(cur_epoch=epoch, cur_step=step)
        scale_rates(self.optimizer)
        examples = sum(samples["global_size"] for samples in group)
        for place, samples in enumerate(group):
            last = place == len(group) - 1
            with self._averaged(last):
                with autocast(self._run, self._device):
                    output: StepOutput = self._task.train_step(self._wrapped, samples)
                    loss = total_loss(output)
                counts = not samples.get("stand_in", False)
                # 1, or NaN for a non-finite loss, which makes all gradients NaN in every process.
                finite = loss.detach() * 0 + 1
                # The only place where losses are divided. DDP averages over processes; the loss
                # is this process's part of the sum.
                share = counts * distributed.world_size() * finite
                (loss / examples * share).backward()
            report = {LOSS: loss.detach(), **output.report}
            self._count(report, output.examples, (finite == 1) & counts)
        if self._averages is not None:
            self._averages.average()
        norm = clip_gradients(self._parameters.values(), self._run.max_grad_norm)
        skipped = (~torch.isfinite(norm)).float()
        cast(Any, self.optimizer).found_inf = skipped  # as torch's GradScaler does
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return skipped

    def window(self) -> tuple[dict[str, float], float]:
        """Metric means over all processes' examples since the last call, and the examples' number.

        Batches with a non-finite loss are left out; the means are empty if none is left.
        """
        names = sorted(self._window)
        sums = distributed.sum_over_processes(torch.stack([self._window[n] for n in names]))
        metrics = dict(zip(names, sums.tolist(), strict=True))
        self._window.clear()
        examples = metrics.pop(EXAMPLES)
        return {n: value / examples for n, value in metrics.items() if examples}, examples

    def tensors(self) -> TrainedTensors:
        """Trained parameters and buffers by name, and the optimizer's tensors by parameter.

        Sharded ones are gathered in the main process and empty in the others. Called by every
        process.
        """
        buffers = {name: self._model.get_buffer(name) for name in self._buffers}
        parameters = {name: whole(each) for name, each in self._parameters.items()}
        return {**parameters, **buffers}, optimizer_tensors(self.optimizer, self._parameters)

    def rank_state(self) -> RankState:
        """State that differs between ranks: random generators and loss sums."""
        random, generators = random_states(self._device)
        return RankState(random, {n: value.cpu() for n, value in self._window.items()}, generators)

    def load(self, state: RunState) -> None:
        """Restore tensors and each process's ``rank_state``.

        Additional processes keep their seed; with fewer processes, the sums are redistributed.
        Raises UserError if the trained parameters differ.
        """
        model = state.renamed_model(self._model.OLD_PARAMETERS)
        optimizer = state.renamed_optimizer(self._model.OLD_PARAMETERS)
        if differing := sorted(model.keys() ^ {*self._parameters, *self._buffers}):
            raise UserError(
                "run.resume: the trained parameters of the state and the model differ: "
                f"{listed(differing)}. Restore run.trainable, or resume with the code that the run "
                "was started with."
            )
        load_into(
            self._model,
            shares(self._model, model),
            name="run.resume",
            allow_missing=["*"],
        )
        load_optimizer(self.optimizer, self._parameters, optimizer)
        rank = distributed.rank()
        for each in state.ranks[rank :: distributed.world_size()]:
            self._add({name: value.to(self._device) for name, value in each.window.items()})
        if rank < len(state.ranks):
            own = state.ranks[rank]
            set_random_states(dict(own.random), own.generators, self._device)

    def _averaged(self, last: bool) -> Any:
        """Context of a backward pass; gradients are averaged in the ``last`` one only."""
        if self._averages is not None:
            self._averages.set_last(last)
            return nullcontext()
        return nullcontext() if last or self._wrapped is self._model else self._wrapped.no_sync()

    def _count(self, report: Mapping[str, Tensor], examples: int, counts: Tensor) -> None:
        sums = {**report, EXAMPLES: torch.tensor(float(examples), device=self._device)}
        self._add({n: torch.where(counts, v, torch.zeros_like(v)) for n, v in sums.items()})

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        for name, value in sums.items():
            self._window[name] = self._window.get(name, torch.zeros_like(value)) + value


EXAMPLES = "examples"
"""Key of the number of examples in a window's sums."""


def _buffers_in_training(model: nn.Module) -> list[str]:
    """Names of the persistent buffers of modules in training mode."""
    saved = model.state_dict().keys()
    names = [
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        if module.training
        for name, _ in module.named_buffers(recurse=False)
    ]
    return [name for name in names if name in saved]


def _compile(model: TrainableModel, backend: str) -> None:
    """Compile the model's training path; the first batches trigger compilation.

    Raises UserError if inductor would fail in the first step for lack of a C++ compiler.
    """
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if backend == "inductor" and not any(map(shutil.which, compilers)):
        raise UserError(
            f"run.compile: inductor needs a C++ compiler, but finds no {' or '.join(compilers)}. "
            "Install one, set the environment variable CXX, or set run.compile=false."
        )
    model.compile_parts(backend)


def autocast(run: RunConfig, device: torch.device) -> Any:
    """Autocast to bfloat16 if ``run.amp``. Its range is float32's, so no loss scaling is needed."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.amp)
