"""Evaluations that are killed and go on with the questions that are left."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import Appended
from lavis_ext.config.loader import Config
from lavis_ext.runners.launch import started
from lavis_ext.runners.saved_steps import EVALUATION, SavedSteps
from lavis_ext.runners.trainer import Trainer
from lavis_ext.tasks.base import Task
from lavis_ext.tasks.questions import QuestionTask
from tests.conftest import MINI_IMAGES
from tests.launching import PATIENCE
from tests.runners.test_runner import TINY_MODEL

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
HEAD_EVAL = "projects/pnp-vqa/eval/gqa_small_eval.yaml"
PIPELINE_EVAL = "projects/pnp-vqa/eval/mini_eval.yaml"
FORKED = multiprocessing.get_context("fork")
Configured = Callable[..., Config]


@pytest.fixture
def data_options(mini_gqa: Path, tmp_path: Path) -> list[str]:
    return [
        f"datasets.gqa_fusion.root={mini_gqa}",
        f"datasets.gqa_fusion.mini_gqa.root={mini_gqa}",
        f"datasets.gqa_fusion.mini_gqa.images={MINI_IMAGES}",
        f"run.output_dir={tmp_path / 'output'}",
        "run.num_workers=0",
        "run.device=cpu",
        "run.name=here",
        "run.resume=auto",
    ]


@pytest.fixture
def weights(configured: Configured, tiny_options: list[str], tmp_path: Path) -> Path:
    """Weights of a tiny network."""
    cfg = configured(
        *tiny_options, *TINY_MODEL, "run.max_steps=1", f"run.output_dir={tmp_path / 'training'}"
    )
    with started(cfg, ["train", "val"]) as runner:
        runner.train()
    return runner.output_dir / "fusion_encoder_best.safetensors"


@pytest.fixture
def head_options(data_options: list[str], weights: Path) -> list[str]:
    """The answer head of a tiny network, on batches of four questions."""
    return [*data_options, f"model.fusion_weights={weights}", "run.batch_size_eval=4"]


@pytest.fixture
def pipeline_options(data_options: list[str]) -> list[str]:
    """The miniature's whole pipeline, with few captions for few questions."""
    return [
        *data_options,
        "run.valid_splits=[]",
        "run.small_test_size=12",
        "run.batch_size_eval=2",
        f"model.fusion_weights={PROJECT}/lavis_ext/miniature/fusion_encoder.safetensors",
        "model.captioner.sampling.num_captions=2",
    ]


def left_by(folder: Path) -> dict[str, Any]:
    names = [path.name for path in folder.glob("*_predictions.json")]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "files": {path.name for path in folder.iterdir()},
        "lines": [{k: v for k, v in line.items() if k != "time"} for line in lines],
        **{n: json.loads((folder / n).read_text()) for n in [*names, "metrics.json"]},
    }


def evaluate(cfg_path: str, options: list[str], rank: int, world: int, port: int) -> None:
    os.chdir(PROJECT)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = ["evaluate.py", "--cfg-path", cfg_path, "--options", *options]
    runpy.run_path("evaluate.py", run_name="__main__")


def evaluated(cfg_path: str, options: list[str], ranks: int = 1) -> list[int | None]:
    """Exit codes of an evaluation by so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = partial(FORKED.Process, target=evaluate)
    processes = [start(args=(cfg_path, options, rank, ranks, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def killed_after(monkeypatch: pytest.MonkeyPatch, batches: int, rank: int = 0) -> None:
    """Kill the next evaluation's rank while it writes the result of a batch."""
    append, done = Appended.append, []

    def cut_off(self: Appended, record: bytes) -> None:
        if "_steps_" not in self.path.name or f"rank{rank}." not in self.path.name:
            append(self, record)
            return
        done.append(record)
        if len(done) < batches:
            append(self, record)
            return
        append(self, record[: len(record) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Appended, "append", cut_off)


def counted(monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    """Note the questions of every evaluated batch in a file, from all processes."""
    before = SavedSteps.add

    def noting(self: SavedSteps, step: Any, samples: Any) -> None:
        with log.open("a") as file:
            file.write(f"{len(samples['ids'])}\n")
        before(self, step, samples)

    monkeypatch.setattr(SavedSteps, "add", noting)


@pytest.mark.parametrize(("kind", "ranks"), [("head", 1), ("head", 2), ("pipeline", 1)])
def test_an_evaluation_killed_three_times_equals_an_undisturbed_one(
    kind: str,
    ranks: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    options = request.getfixturevalue(f"{kind}_options")
    cfg_path = HEAD_EVAL if kind == "head" else PIPELINE_EVAL
    assert evaluated(cfg_path, [*options, f"run.output_dir={tmp_path / 'a'}"], ranks) == [0] * ranks
    undisturbed = left_by(tmp_path / "a" / "here")
    counted(monkeypatch, tmp_path / "answered")
    for batches in (1, 2, 3):
        with monkeypatch.context() as patch:
            killed_after(patch, batches, rank=ranks - 1)
            assert evaluated(cfg_path, options, ranks)[-1] == -signal.SIGKILL
    assert evaluated(cfg_path, options, ranks) == [0] * ranks
    assert left_by(tmp_path / "output" / "here") == undisturbed
    answered = sum(map(int, (tmp_path / "answered").read_text().split()))
    questions = sum(len(undisturbed[n]) for n in undisturbed if n.endswith("_predictions.json"))
    lost = answered - questions
    assert 0 < lost <= 3 * ranks * 8, "only batches that were being written are repeated"


def test_fewer_processes_take_over_the_batches_of_all(
    head_options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert evaluated(HEAD_EVAL, [*head_options, f"run.output_dir={tmp_path / 'a'}"]) == [0]
    with monkeypatch.context() as patch:
        killed_after(patch, 3, rank=1)
        evaluated(HEAD_EVAL, head_options, ranks=2)
    assert evaluated(HEAD_EVAL, head_options) == [0]
    one, both = left_by(tmp_path / "a" / "here"), left_by(tmp_path / "output" / "here")
    for split in ("val", "testdev"):
        one_answer, other = (
            {each["questionId"]: each["prediction"] for each in left[f"{split}_predictions.json"]}
            for left in (one, both)
        )
        assert one_answer == other
        assert one["metrics.json"][split] == pytest.approx(both["metrics.json"][split], abs=1e-6)


class Stopped(BaseException):
    pass


@pytest.fixture
def interrupted(
    configured: Configured, head_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    """A config whose evaluation stopped in its third batch, changed by these options."""
    step, seen = QuestionTask.valid_step, []

    def stopping(self: Task, model: Any, samples: Any) -> Any:
        seen.append(samples)
        if len(seen) == 3:
            raise Stopped
        return step(self, model, samples)

    def config(*options: str) -> Config:
        return configured(*head_options, *options, cfg_path=HEAD_EVAL)

    with monkeypatch.context() as patch:
        patch.setattr(QuestionTask, "valid_step", stopping)
        with pytest.raises(Stopped), started(config(), ["val"]) as runner:
            runner.evaluate()
    return config


def run(cfg: Config) -> Trainer:
    with started(cfg, ["val"]) as runner:
        runner.evaluate()
    return runner


def test_other_weights_questions_or_options_are_refused(
    interrupted: Callable[..., Config],
    configured: Configured,
    tiny_options: list[str],
    weights: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "output" / "here"
    before = {path.name: path.read_bytes() for path in folder.glob("*_steps_*")}
    assert before
    with pytest.raises(UserError, match=r"(?s)can't continue with this config.*small_val_size"):
        run(interrupted("run.small_val_size=5"))
    cfg = configured(
        *tiny_options,
        *TINY_MODEL,
        *("run.max_steps=2", f"run.output_dir={tmp_path / 'b'}", "run.seed=7"),
    )
    with started(cfg, ["train", "val"]) as runner:
        runner.train()
    right = weights.read_bytes()
    weights.write_bytes((runner.output_dir / weights.name).read_bytes())
    with pytest.raises(UserError, match="can't continue, as its weights were others"):
        run(interrupted())
    weights.write_bytes(right)
    assert {path.name: path.read_bytes() for path in folder.glob("*_steps_*")} == before
    run(interrupted("run.batch_size_eval=7"))
    assert not [*folder.glob("*_steps_*"), *folder.glob(EVALUATION)]
    with pytest.raises(UserError, match=r"here is finished\. For another one"):
        run(interrupted())


def test_auto_without_a_name_continues_the_newest_evaluation_of_the_config(
    interrupted: Callable[..., Config], tmp_path: Path
) -> None:
    unfinished = tmp_path / "output" / "gqa_small_eval-20260101-000000"
    (tmp_path / "output" / "here").rename(unfinished)
    assert run(interrupted("run.name=null")).output_dir == unfinished
    assert run(interrupted("run.name=null")).output_dir != unfinished
    with pytest.raises(UserError, match=r"has no interrupted evaluation \(evaluation\.json\)"):
        run(interrupted("run.name=null", f"run.resume={tmp_path}"))


def test_a_damaged_line_and_those_after_it_are_evaluated_again(
    interrupted: Callable[..., Config], tmp_path: Path
) -> None:
    (path,) = (tmp_path / "output" / "here").glob("*_steps_*")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"count":', b'"count": 1'))
    run(interrupted())
    rows = len(json.loads(first[9:])["rows"])
    assert f"val: {rows} of" in (path.parent / "log.txt").read_text()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "lavis_ext.evaluation.1"}'])
def test_without_its_facts_an_evaluation_starts_over_and_says_so(
    content: bytes, interrupted: Callable[..., Config], tmp_path: Path
) -> None:
    """Its options are unknown then, so its results may be those of others."""
    (tmp_path / "output" / "here" / EVALUATION).write_bytes(content)
    log = (run(interrupted()).output_dir / "log.txt").read_text()
    assert f"{EVALUATION} is damaged or of another version: the evaluation starts over" in log
    assert "were evaluated before the interruption" not in log


def test_an_evaluation_stopped_before_its_metrics_answers_nothing_again(
    configured: Configured, head_options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = partial(configured, *head_options, cfg_path=HEAD_EVAL)
    undisturbed = run(cfg(f"run.output_dir={tmp_path / 'a'}")).output_dir
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_report", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            run(cfg())
    counted(monkeypatch, tmp_path / "answered")
    folder = run(cfg()).output_dir
    assert not (tmp_path / "answered").exists()
    for name in ("metrics.json", "val_predictions.json"):
        assert json.loads((folder / name).read_text()) == json.loads(
            (undisturbed / name).read_text()
        )


def test_training_whose_last_evaluation_was_killed_continues_with_it(
    configured: Configured,
    tiny_options: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = partial(
        configured, *tiny_options, *TINY_MODEL, "run.max_steps=2", "run.name=t", "run.resume=auto"
    )
    add = SavedSteps.add

    def stopping(self: SavedSteps, step: Any, samples: Any) -> None:
        add(self, step, samples)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(SavedSteps, "add", stopping)
        with pytest.raises(Stopped), started(cfg(), ["train", "val", "testdev"]) as runner:
            runner.train()
    with started(cfg(), ["train", "val", "testdev"]) as runner:
        metrics = runner.train()
    log = (runner.output_dir / "log.txt").read_text()
    assert "were evaluated before the interruption" in log
    with started(cfg("run.name=u"), ["train", "val", "testdev"]) as runner:
        assert runner.train() == metrics


def test_results_that_are_not_json_are_used_but_not_saved(
    interrupted: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = QuestionTask.valid_step

    def odd(self: Task, model: Any, samples: Any) -> Any:
        found = step(self, model, samples)
        return type(found)(found.report, found.count, {**found.by_id, "odd": {"1": {2}}})

    monkeypatch.setattr(QuestionTask, "valid_step", odd)
    folder = run(interrupted()).output_dir
    assert (folder / "val_predictions.json").exists()
    assert (folder / "log.txt").read_text().count("can't be saved") == 1
