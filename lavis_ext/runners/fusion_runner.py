"""The runner ``fusion_runner``: trains, validates, keeps the best weights, and comes to an end."""

import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lavis_ext import distributed
from lavis_ext.config import loader as config_loader
from lavis_ext.datasets.batches import EvalBatches
from lavis_ext.datasets.gqa import GqaFusionDataset
from lavis_ext.datasets.loading import make_loader, sound, to_device
from lavis_ext.door import RunnerBase, registry
from lavis_ext.errors import UserError, nearest
from lavis_ext.evaluation.predictions import write_predictions
from lavis_ext.evaluation.table import figures_table, headline, reasons_list
from lavis_ext.files import write_json
from lavis_ext.models.fusion_weights import FusionWeights
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.early_stopping import EarlyStopping
from lavis_ext.runners.freezing import parts_table, train_mode
from lavis_ext.runners.last_state import save_last_state
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.progress import Progress
from lavis_ext.runners.reporting import write_run_report, write_scores
from lavis_ext.runners.run_folder import describe_run, make_run_folder
from lavis_ext.runners.run_log import RunLog, duration, log
from lavis_ext.runners.training_step import TrainingStep, autocast, grouped
from lavis_ext.tasks.base import Evaluation
from lavis_ext.weights import load_into

LAST_STATE = "last_state.safetensors"
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
        for split, dataset in datasets.items():
            if len(dataset) < distributed.world_size():
                raise UserError(
                    f"Split '{split}' has {len(dataset)} questions for {distributed.world_size()} "
                    "processes; start fewer, or use more questions (run.small_*_size)."
                )
        if "train" in datasets:
            self._check_metric(task, model, datasets)
        super().__init__(cfg, task, model, datasets, job_id)
        for report in model.load_reports:
            log.info(report)
        self._model.to(self.device)
        self.early_stopping = EarlyStopping(self.run.goal, self.run.patience, self.run.min_gain)
        self.steps = 0
        self._evaluations: dict[str, Evaluation] = {}

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return distributed.choose_device(self.run.device)

    @property
    def model(self) -> Any:
        """The model without DDP around it."""
        return self._model

    def setup_output_dir(self) -> None:
        """Make the run's own folder under ``run.output_dir`` in the working directory."""
        folder = None
        if distributed.is_main_process():
            folder = make_run_folder(Path(self.run.output_dir), self.job_id)
            describe_run(folder, self.config.config)
        self.output_dir: Path = distributed.broadcast(folder)  # type: ignore[assignment]
        resolved = OmegaConf.to_container(self.config.config)
        try:
            self.run_log = RunLog(folder, self.run, resolved)  # type: ignore[arg-type]
        except UserError:
            if folder:
                shutil.rmtree(folder)
            raise

    def train(self) -> dict[str, dict[str, float]]:
        """Train, then report the best weights on ``test_splits``; their figures by split."""
        self.plan = TrainingPlan.of(self.run, self.datasets)
        self.progress = Progress(self.plan.steps, self.plan.validations)
        log.info("%s\n\n%s\n", parts_table(self.model), self.plan)
        self._start_training()
        for epoch in range(self.run.max_epoch):
            self.train_epoch(epoch)
            if self._finished:
                break
        if self.run.valid_splits and self._validated_at != self.steps:
            self.validate()
        return self._finish(epoch)

    def train_epoch(self, epoch: int) -> None:
        """One epoch, or what of it remains until the run's last step."""
        self.plan.batches.epoch = epoch
        batches = self.progress.waiting_for(sound(self._train_loader))
        for group in grouped(batches, self.run.accum_grad_iters):
            self._schedule.step(cur_epoch=epoch, cur_step=self.steps)
            reports = self._step([to_device(samples, self.device) for samples in group])
            for report, questions in reports:
                self._count(report, questions)
            self.steps += 1
            self.progress.step()
            if self.steps % self.run.log_freq == 0 or self.steps == self.plan.steps:
                self._log_training(epoch)
            every = self.run.val_every_steps
            if every and self.steps % every == 0:
                self.validate()
            if self._finished:
                break
        if self.steps % self.plan.steps_an_epoch:
            return
        if self.run.save_freq and (epoch + 1) % self.run.save_freq == 0:
            self._export(f"epoch{epoch + 1}")
        if self.run.valid_splits and not self.run.val_every_steps:
            self.validate()

    def validate(self) -> None:
        """Evaluate the validation split; write the best weights if these are the best so far."""
        split = self.run.valid_splits[0]
        started = time.perf_counter()
        figures = self.eval_epoch(split)
        self.progress.validated(time.perf_counter() - started)
        self._validated_at = self.steps
        value = figures[self.run.metric]
        improved = self.early_stopping.update(value)
        if improved:
            self._export("best", value)
        best = self.early_stopping.best
        log.info(
            "validation at step %d: %s %.4f on %s, %s",
            self.steps,
            self.run.metric,
            value,
            split,
            "the best so far: written"
            if improved
            else f"best {best:.4f}, {self.early_stopping.waited} before",
        )

    @torch.no_grad()
    def eval_epoch(self, split_name: str, *, final: bool = False, **_: Any) -> dict[str, float]:
        """Figures of a split with the weights as they are; a ``final`` evaluation has all."""
        dataset = self.datasets[split_name]
        batches = EvalBatches(
            dataset.image_codes(),
            batch_size=self.run.batch_size_eval,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        loader = make_loader(dataset, batches, self.run.num_workers)
        self.model.eval()
        self.task.before_evaluation(model=self.model, dataset=dataset, final=final)
        # Programs are for training's few shapes; evaluation has a shape for each batch.
        with autocast(self.run, self.device), torch.compiler.set_stance("force_eager"):
            result = self.task.evaluation(
                self.model, (to_device(samples, self.device) for samples in sound(loader))
            )
        evaluation = self.task.after_evaluation(result, dataset=dataset, model=self.model)
        train_mode(self.model)
        self.run_log.write(split_name, self.steps, evaluation.figures)
        if distributed.is_main_process() and evaluation.predictions:
            path = self.output_dir / f"{split_name}_predictions.json"
            write_predictions(path, evaluation.predictions)
        if final:
            self._evaluations[split_name] = evaluation
        figures: dict[str, float] = evaluation.figures
        return figures

    def evaluate(
        self, cur_epoch: Any = None, skip_reload: bool = True
    ) -> dict[str, dict[str, float]]:
        """Figures by split, of the splits that the runner has, with the weights as they are."""
        figures = {split: self.eval_epoch(split, final=True) for split in self.datasets}
        self._report(figures)
        return figures

    def close(self) -> None:
        """Close the logs."""
        self.run_log.close()

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
        self._train_loader = make_loader(
            self.datasets["train"], self.plan.batches, self.run.num_workers, persistent=True
        )
        self._step = TrainingStep(self.run, self.task, self.model, self.device)
        self._schedule = registry.get_lr_scheduler_class(self.run.lr_sched)(
            optimizer=self._step.optimizer,
            max_steps=self.plan.steps,
            init_lr=self.run.init_lr,
            min_lr=self.run.min_lr,
            max_epoch=self.run.max_epoch,
            decay_rate=self.run.lr_decay_rate,
            warmup_steps=self.run.warmup_steps,
            warmup_start_lr=self.run.warmup_lr,
        )
        self._window: dict[str, torch.Tensor] = {}
        self._validated_at = -1

    def _count(self, report: dict[str, torch.Tensor], questions: int) -> None:
        sums = {**report, "questions": torch.tensor(float(questions), device=self.device)}
        for name, value in sums.items():
            self._window[name] = self._window.get(name, torch.zeros_like(value)) + value

    def _log_training(self, epoch: int) -> None:
        """A line on the steps since the last one, over all processes."""
        names = sorted(self._window)
        sums = distributed.sum_over_processes(torch.stack([self._window[n] for n in names]))
        figures = dict(zip(names, sums.tolist(), strict=True))
        self._window.clear()
        questions = figures.pop("questions")
        figures = {name: value / questions for name, value in figures.items()}
        window = self.progress.window(questions)
        learning_rate = self._step.optimizer.param_groups[0]["lr"]
        self.run_log.write(
            "train",
            self.steps,
            {
                **figures,
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
            figures["loss"],
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

    def _finish(self, epoch: int) -> dict[str, dict[str, float]]:
        """Write the last state, load the best weights, report them."""
        stopped = self.early_stopping.should_stop
        log.info(
            "training ends at step %d after %s%s",
            self.steps,
            duration(self.progress.elapsed),
            f": no gain in {self.early_stopping.waited} validations" if stopped else "",
        )
        if not self.run.valid_splits:
            self._export("best")
        if distributed.is_main_process():
            facts = {"step": self.steps, "epoch": epoch, **asdict(self.early_stopping)}
            save_last_state(self.output_dir / LAST_STATE, self.model, self._step.optimizer, facts)
        distributed.barrier()
        path = self._weights_file("best")
        best = FusionWeights.load(path)
        load_into(self.model, dict(best.state), name=path.name, allow_missing=["*"])
        self.steps = best.step
        splits = [*self.run.valid_splits, *self.run.test_splits]
        figures = {split: self.eval_epoch(split, final=True) for split in splits}
        log.info("\nbest weights, of step %d: %s\n", best.step, path)
        self._report(figures)
        return figures

    def _report(self, figures: dict[str, dict[str, float]]) -> None:
        if distributed.is_main_process():
            write_json(self.output_dir / "metrics.json", figures)
            write_scores(self.output_dir, self._evaluations)
        if figures:
            log.info("%s\n", figures_table(figures))
        reasons = {split: each.not_computed for split, each in self._evaluations.items()}
        if any(reasons.values()):
            log.info("%s\n", reasons_list(reasons))
        for split, values in figures.items():
            if line := headline(split, values):
                log.info(line)
        if self.run.report and self._evaluations and distributed.is_main_process():
            log.info(
                "report: %s",
                write_run_report(self.output_dir, self.config, self.datasets, self._evaluations),
            )
        log.info("figures and predictions are in %s", self.output_dir)

    def _weights_file(self, which: str) -> Path:
        return self.output_dir / f"{self.model.weights_name}_{which}.safetensors"

    def _export(self, which: str, value: float | None = None) -> None:
        if not distributed.is_main_process():
            return
        FusionWeights(
            state=self.model.exported_state(),
            config=OmegaConf.to_container(self.config.config),  # type: ignore[arg-type]
            vocabulary=self.model.vocabulary,
            metric=self.run.metric if value is not None else None,
            value=value,
            step=self.steps,
        ).save(self._weights_file(which))
