"""The runner ``fusion_runner``: trains, validates, keeps the best weights, and comes to an end."""

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lavis_ext import distributed
from lavis_ext.checkpoints.trained_weights import FusionWeights
from lavis_ext.checkpoints.weights import load_into
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.common.files import write_json
from lavis_ext.config import loader as config_loader
from lavis_ext.datasets.gqa.dataset import FusionSamples, GqaFusionDataset
from lavis_ext.datasets.loader import Loader, to_device
from lavis_ext.datasets.samplers import EvalBatches
from lavis_ext.distributed.peers import COMPUTING, ENDING, EVALUATING, LOADING
from lavis_ext.evaluation.predictions import write_predictions
from lavis_ext.evaluation.table import figures_table, headline, reasons_list
from lavis_ext.registry import RunnerBase, registry
from lavis_ext.runners.best_weights import BestWeights
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.early_stopping import EarlyStopping
from lavis_ext.runners.freezing import parts_table, train_mode
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.progress import Progress
from lavis_ext.runners.reporting import REPORT, write_run_report, write_scores
from lavis_ext.runners.run_files import RunFiles
from lavis_ext.runners.run_folder import FIGURES, versions
from lavis_ext.runners.run_log import duration, log
from lavis_ext.runners.run_state import RankState, RunState
from lavis_ext.runners.skipped_steps import SkippedSteps
from lavis_ext.runners.state_saver import StateSaver
from lavis_ext.runners.stepper import Stepper, autocast, grouped
from lavis_ext.runners.stop_signals import StopRequested, StopSignals
from lavis_ext.runners.unreadable import LeftOut, Unseen
from lavis_ext.tasks.base import Evaluation

MUCH_WAITING = 0.1
"""Share of the time that may go into waiting for data before the log says so."""


@registry.register_runner("fusion_runner")
class FusionRunner(RunnerBase):
    """Trains what ``run.trainable`` names and exports the best of it.

    Every process goes through every method together; only the main process writes files.

    Args:
        cfg: the run's config.
        task: a task of LAVIS's kind.
        model: the model, in the same state in every process, frozen but for what is trained.
        datasets: data sets by split.
        job_id: the run's name, first part of its folder's.
    """

    Config = RunConfig

    def __init__(
        self,
        cfg: config_loader.Config,
        task: Any,
        model: Any,
        datasets: dict[str, GqaFusionDataset],
        job_id: str = "run",
    ) -> None:
        self.run: RunConfig = cfg.run
        if "train" in datasets:
            self._check_metric(task, model, datasets)
            self.plan = TrainingPlan.of(self.run, datasets)
        super().__init__(cfg, task, model, datasets, job_id)
        for report in model.load_reports:
            log.info(report)
        self._model.to(self.device)
        self.early_stopping = EarlyStopping(self.run.goal, self.run.patience, self.run.min_gain)
        self.steps = 0
        self._evaluations: dict[str, Evaluation] = {}
        self.signals = StopSignals()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return distributed.choose_device(self.run.device)

    @property
    def model(self) -> Any:
        """The model without DDP around it."""
        return self._model

    def setup_output_dir(self) -> None:
        """The run's own folder under ``run.output_dir``: a new one or, to go on, an old one."""
        trains = "train" in self.datasets
        self.files = RunFiles(self.config, self.job_id, self._batch_facts if trains else None)
        self.output_dir, self.run_log = self.files.folder, self.files.log
        if distributed.is_main_process():
            self._best = BestWeights(self.output_dir, self._model.weights_name)

    def _batch_facts(self) -> dict[str, Any]:
        world = distributed.world_size()
        return {
            "questions": len(self.datasets["train"]),
            "processes": world,
            "questions a batch of all processes": self.run.batch_size_train * world,
            "batches an epoch": len(self.plan.batches),
            "layout": self.plan.batches.layout,
        }

    def train(self) -> dict[str, dict[str, float]]:
        """Train, then report the best weights on ``test_splits``; their figures by split.

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
                        self.files.newest_state,
                    )
                raise SystemExit(128 + stop.signum) from None

    def train_epoch(self, epoch: int) -> None:
        """What remains of an epoch, or of it until the run's last step."""
        self.plan.batches.epoch = epoch
        done = self.steps % self.plan.steps_an_epoch
        self.plan.batches.start = done * self.run.accum_grad_iters
        batches = self.progress.waiting_for(self._train_loader)
        distributed.at(LOADING, self.steps + 1)
        for group in grouped(batches, self.run.accum_grad_iters):
            distributed.at(COMPUTING, self.steps + 1)
            on_device = [to_device(samples, self.device) for samples in group]
            skipped = self._stepper.step(on_device, epoch, self.steps)
            self.steps += 1
            self.progress.step()
            asked = [question for samples in group for question in samples.get("question_id", [])]
            self._skipped.note(self.steps, skipped, asked)
            self._left_out.note(self.steps, group)
            if self.steps % self.run.log_freq == 0 or self.steps == self.plan.steps:
                self._log_training(epoch)
            self._after_step()
            if self._finished:
                break
            distributed.at(LOADING, self.steps + 1)

    def _after_step(self) -> None:
        """What is due between two steps: weights to keep, a validation, a state, an end."""
        if distributed.is_main_process():
            self._best.try_again()
        epochs, within = divmod(self.steps, self.plan.steps_an_epoch)
        if not within and self.run.save_freq and epochs % self.run.save_freq == 0:
            self._export_epoch(epochs)
        every = self.run.val_every_steps
        due = self.steps % every == 0 if every else not within
        if due and self.run.valid_splits and self._validated_at != self.steps:
            self.validate()
        if self._heed_signals(self._saver.due(self.steps)):
            self._save()

    def _heed_signals(self, due: bool = False) -> bool:
        """Whether any process finds a state ``due``. Raises StopRequested if one was told to."""
        signum, due_anywhere = distributed.greatest([self.signals.received, int(due)])
        if signum:
            raise StopRequested(signum)
        return bool(due_anywhere)

    def validate(self) -> None:
        """Evaluate the validation split; write the best weights if these are the best so far."""
        split = self.run.valid_splits[0]
        started = time.perf_counter()
        figures = self.eval_epoch(split)
        self.progress.validated(time.perf_counter() - started)
        self._validated_at = self.steps
        value = figures[self.run.metric]
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
            split,
            outcome,
        )

    @torch.no_grad()
    def eval_epoch(
        self, split_name: str, *, step: int | None = None, final: bool = False, **_: Any
    ) -> dict[str, float]:
        """Figures of a split with the weights as they are, which are those of ``step``.

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
        samples = map(self._begun, unseen.noted(loader))
        stoppable = self._until_stopped(samples, len(batches)) if self.signals.watching else samples
        # Programs are for training's few shapes; evaluation has a shape for each batch.
        with autocast(self.run, self.device), torch.compiler.set_stance("force_eager"):
            result = self.task.evaluation(self.model, stoppable)
        evaluation = self.task.after_evaluation(result, dataset=dataset, model=self.model)
        train_mode(self.model)
        step = self.steps if step is None else step
        unseen.tell(split_name, step)
        self.run_log.write(split_name, step, evaluation.figures)
        if evaluation.predictions:
            path = self.output_dir / f"{split_name}_predictions.json"
            write = self.files.must_write if final else self.files.may_write
            write(path, partial(write_predictions, path, evaluation.predictions))
        if final:
            self._evaluations[split_name] = evaluation
        figures: dict[str, float] = evaluation.figures
        return figures

    def _begun(self, samples: FusionSamples) -> FusionSamples:
        """A batch of an evaluation, on the device."""
        distributed.at(EVALUATING, self.steps)
        return to_device(samples, self.device)

    def _until_stopped(
        self, batches: Iterator[FusionSamples], count: int
    ) -> Iterator[FusionSamples]:
        """The batches of this process, after each of which all processes may agree to stop."""
        (rounds,) = distributed.greatest([count])
        for _ in range(rounds):
            self._heed_signals()
            if (batch := next(batches, None)) is not None:
                yield batch

    def evaluate(
        self, cur_epoch: Any = None, skip_reload: bool = True
    ) -> dict[str, dict[str, float]]:
        """Figures by split, of the splits that the runner has, with the weights as they are."""
        figures = {split: self.eval_epoch(split, final=True) for split in self.datasets}
        self._report(figures)
        return figures

    def close(self, *, failed: bool = False) -> None:
        """Close the logs, and leave the run's folder to others."""
        self.files.close(failed=failed)

    def _check_metric(self, task: Any, model: Any, datasets: dict[str, GqaFusionDataset]) -> None:
        for split in self.run.valid_splits:
            metrics = task.metrics(model, datasets[split])
            if self.run.metric not in metrics:
                known = [name for name, reason in metrics.items() if reason is None]
                raise UserError(
                    f"run.metric is '{self.run.metric}', but validations of these objectives have: "
                    f"{', '.join(known)}.{nearest(self.run.metric, metrics)}"
                )
            if reason := metrics[self.run.metric]:
                raise UserError(
                    f"run.metric is '{self.run.metric}', which isn't computed on '{split}': "
                    f"{reason}."
                )

    def _start_training(self) -> None:
        self._train_loader = Loader(
            self.datasets["train"],
            self.plan.batches,
            self.run.num_workers,
            self.run.data_faults,
            persistent=True,
        )
        self._skipped = SkippedSteps(self.run.max_skipped_steps, self.run_log)
        self._left_out = LeftOut(self.run.data_faults.most_skipped, self.run_log)
        self._validated_at = -1
        self._saver = StateSaver(self.run, self.files)
        self._stepper = Stepper(self.task, self.model, self.run, self.plan.steps, self.device)
        if self.files.state is not None:
            self._go_on_from(self.files.state)
            self.files.state = None  # it is as large as the model and the optimizer

    def _go_on_from(self, state: RunState) -> None:
        """Be what ``state`` was taken of."""
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
        self._stepper.load(state.model, state.optimizer, state.ranks)

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
        figures, questions = self._stepper.window()
        window = self.progress.window(questions)
        learning_rate = self._stepper.learning_rate
        self.run_log.write(
            "train",
            self.steps,
            {
                **figures,
                "skipped_steps": self._skipped.total,
                "lr": learning_rate,
                "questions_per_second": window.rate,
                "waiting_for_data": window.waiting,
                "epoch": epoch,
            },
        )
        parts = ", ".join(
            f"{name.removesuffix('_loss')} {value:.3f}"
            for name, value in figures.items()
            if name.endswith("_loss")
        )
        log.info(
            "epoch %d/%d  step %d/%d  loss %.4f (%s)  lr %.1e  %.3g questions/s  %s left",
            epoch + 1,
            self.run.max_epoch,
            self.steps,
            self.plan.steps,
            figures.get("loss", float("nan")),
            parts,
            learning_rate,
            window.rate,
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

    @property
    def _finished(self) -> bool:
        return self.early_stopping.should_stop or self.steps >= self.plan.steps

    def _finish(self) -> dict[str, dict[str, float]]:
        """Validate what hasn't been, save the state, load the best weights, report them."""
        if self.run.valid_splits and self._validated_at != self.steps:
            self.validate()
        stopped = self.early_stopping.should_stop
        log.info(
            "training ends at step %d after %s%s",
            self.steps,
            duration(self.progress.elapsed),
            f": no gain in {self.early_stopping.waited} validations" if stopped else "",
        )
        if not self.run.valid_splits and distributed.is_main_process():
            self._best.take(self._weights(None))
        path = self._weights_file("best")
        self.files.must_write(path, lambda: self._best.write())
        if not self._save():
            raise UserError(f"{self._saver.failure}. {self.files.way_on}")
        best = FusionWeights.load(path)
        load_into(self.model, dict(best.state), name=path.name, allow_missing=["*"])
        splits = [*self.run.valid_splits, *self.run.test_splits]
        figures = {split: self.eval_epoch(split, step=best.step, final=True) for split in splits}
        log.info("\nbest weights, of step %d: %s\n", best.step, path)
        self._report(figures)
        return figures

    def _report(self, figures: dict[str, dict[str, float]]) -> None:
        distributed.at(ENDING, self.steps)
        folder = self.output_dir
        for split, evaluation in self._evaluations.items():
            path = folder / f"{split}_scores.json"
            self.files.must_write(path, partial(write_scores, path, evaluation))
        if figures:
            log.info("%s\n", figures_table(figures))
        reasons = {split: each.not_computed for split, each in self._evaluations.items()}
        if any(reasons.values()):
            log.info("%s\n", reasons_list(reasons))
        for split, values in figures.items():
            if line := headline(split, values):
                log.info(line)
        if self.run.report and self._evaluations:
            self.files.must_write(folder / REPORT, self._write_report)
        # The last of all: a run that has it is finished, and isn't resumed.
        self.files.must_write(folder / FIGURES, partial(write_json, folder / FIGURES, figures))
        log.info("figures and predictions are in %s", self.output_dir)

    def _weights_file(self, which: str) -> Path:
        return self.output_dir / f"{self.model.weights_name}_{which}.safetensors"

    def _weights(self, value: float | None) -> FusionWeights:
        return FusionWeights(
            state=self.model.exported_state(),
            config=self.files.resolved,
            vocabulary=self.model.vocabulary,
            metric=self.run.metric if value is not None else None,
            value=value,
            step=self.steps,
        )

    def _export_epoch(self, epoch: int) -> None:
        path = self._weights_file(f"epoch{epoch}")
        self.files.may_write(path, lambda: self._weights(None).save(path))

    def _write_report(self) -> None:
        path = write_run_report(self.output_dir, self.config, self.datasets, self._evaluations)
        log.info("report: %s", path)
