"""A run that can't fit into memory is rejected early, and `auto` finds the largest batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.runners import memory
from lavis_ext.runners.launch import prepared, started
from lavis_ext.runners.memory import free_bytes, model_on_meta
from tests.conftest import SMALL
from tests.runners.test_runner import SPLITS, TINY_MODEL

Configured = Callable[..., Config]
MIB = 2**20


@pytest.fixture
def config(configured: Configured, tiny_options: list[str]) -> Configured:
    return lambda *options: configured(*tiny_options, *TINY_MODEL, *options)


def with_free(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)


def test_a_step_that_does_not_fit_is_an_error_before_the_run_has_a_folder(
    config: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_free(monkeypatch, 2 * MIB)
    needed = r"needs about [\d.e-]+ GiB .* 0.00195 GiB are free.*batch_size_train=auto"
    with pytest.raises(UserError, match=needed), started(config(), SPLITS):
        pass
    assert not (tmp_path / "output").exists()
    with_free(monkeypatch, None)
    with started(config(), SPLITS) as runner:
        assert runner.run.batch_size_train == 16


def batch_size(config: Config) -> int:
    with started(config, SPLITS) as runner:
        saved = OmegaConf.load(runner.output_dir / "config.yaml")
        assert saved.run.batch_size_train == runner.run.batch_size_train
        return runner.run.examples_per_batch


def test_auto_picks_a_batch_that_fits_and_a_resumed_run_keeps_it(
    config: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    auto = "run.batch_size_train=auto"
    with_free(monkeypatch, 10**15)
    assert batch_size(config(auto)) == 32  # of 48 questions
    taken = [
        batch_size(config(auto)) for free in (8, 14) if with_free(monkeypatch, free * MIB) is None
    ]
    assert 1 <= taken[0] < taken[1] < 32
    with_free(monkeypatch, MIB)
    with pytest.raises(UserError, match="auto, but a batch of one"):
        batch_size(config(auto))
    # On a machine with more memory, the resumed run keeps its batch size.
    with_free(monkeypatch, 14 * MIB)
    with started(config(auto, "run.name=one", "run.save_every_steps=1"), SPLITS) as runner:
        runner.train()
    with_free(monkeypatch, 10**15)
    resumed = config(auto, "run.name=one", f"run.resume={tmp_path / 'output' / 'one'}")
    assert batch_size(resumed) == taken[1]


def test_the_estimate_covers_a_steps_memory(config: Configured) -> None:
    """Every parameter, three more of each trained one, and activations that grow with a batch."""
    cfg = config('run.trainable=["fusion.*"]')
    with prepared(cfg, SPLITS) as parts:
        on_meta = model_on_meta(cfg, parts.task)
        found = memory.StepMemory.of(on_meta, 10)
        sizes = {p: 4 * p.numel() for p in parts.model.parameters()}
    assert found.parameters == sum(sizes.values())
    assert found.optimizer == 3 * sum(size for p, size in sizes.items() if p.requires_grad)
    assert 0 < found.optimizer < 3 * found.parameters
    assert found.total == found.parameters + found.optimizer + 10


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "anon 9\ninactive_file 50",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(memory.torch.device("cpu")) == 350
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_bytes(memory.torch.device("cpu")) == 175
    (tmp_path / "memory.max").write_text("max")
    assert (free_bytes(memory.torch.device("cpu")) or 0) > 350


def test_a_warm_up_longer_than_the_run_is_warned_of_with_a_remedy(config: Configured) -> None:
    with started(config("run.warmup_steps=50"), SPLITS) as runner:
        text = (runner.output_dir / "log.txt").read_text(encoding="utf-8")
    assert "warmup_steps is 50 and the run has 3 steps" in text
    assert "Set run.warmup_steps=0." in text


def test_a_run_without_the_tasks_metric_selects_by_loss(
    configured: Configured,
    tiny_options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The smallest config of a fusion has no answer head."""
    smallest = OmegaConf.load(SMALL)
    smallest.model.objectives = {"itm": {"weight": 1.0}}
    del smallest.run.metric
    OmegaConf.save(smallest, tmp_path / "smallest.yaml")
    ours = [each for each in TINY_MODEL if ".objectives." not in each]
    cfg = configured(*tiny_options, *ours, cfg_path=tmp_path / "smallest.yaml")
    with started(cfg, SPLITS) as runner:
        assert runner.run.metric == "loss"
        runner.train()
    assert "has no answer_accuracy; the lowest loss selects the best weights" in (
        capsys.readouterr().out
    )
