"""Weights, states and configs that revision 869268d wrote still do what they did then.

The files are described in ``assets/before_contract/README.md``.
"""

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROJECT = Path(__file__).parents[2]
RELATIVE = Path("tests") / "assets" / "before_contract"
ASSETS = PROJECT / RELATIVE
WEIGHTS = f"model.fusion_weights={RELATIVE / 'weights.safetensors'}"
BEST = "fusion_encoder_best.safetensors"
SAME = 1e-6
SAME_METRIC = 1e-5
"""Sums over a split, in whatever order they are added."""

Run = Callable[..., Path]
Metrics = dict[str, dict[str, float]]


@pytest.fixture
def run(mini_gqa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("train.py", "train.yaml", KEY=VALUE, ...)`` as a user would; the run's folder.

    The working directory is the project: the saved run names its weights relative to it.
    """
    monkeypatch.chdir(PROJECT)

    def called(program: str, config: str, *options: str) -> Path:
        output = tmp_path / "output"
        data = f"datasets.gqa_fusion.mini_gqa.root={mini_gqa}"
        arguments = ["--cfg-path", str(RELATIVE / config), "--options", data]
        arguments += [f"run.output_dir={output}", *options]
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        runpy.run_path(str(PROJECT / program), run_name="__main__")
        (folder,) = (path.parent for path in output.glob("*/metrics.json"))
        return folder

    return called


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Losses were computed by one thread, and are compared to their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def metrics(folder: Path) -> Metrics:
    found: Metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return found


def predictions(folder: Path, split: str) -> dict[str, str]:
    text = (folder / f"{split}_predictions.json").read_text(encoding="utf-8")
    return {each["questionId"]: each["prediction"] for each in json.loads(text)}


def losses(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Every loss in a run's log, by what was evaluated or trained on, and the step."""
    entries = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {
        (entry["kind"], entry["step"]): {
            name: value for name, value in entry.items() if name.endswith("loss")
        }
        for entry in entries
        if entry["kind"] != "declared"  # newer logs say what their metrics are
    }


def assert_same_losses(folder: Path, old: Path) -> None:
    now, before = losses(folder), losses(old)
    assert now.keys() == before.keys()
    for place, values in before.items():
        assert now[place] == pytest.approx(values, abs=SAME), place


def assert_same_scores(folder: Path, old: Path) -> None:
    """Every metric that there was then; others may have come."""
    now = metrics(folder)
    for split, values in metrics(old).items():
        assert {n: now[split][n] for n in values} == pytest.approx(values, abs=SAME_METRIC), split
        if (old / f"{split}_predictions.json").exists():
            assert predictions(folder, split) == predictions(old, split)


def tensors(path: Path) -> list[torch.Tensor]:
    """A file's tensors in an order that is not that of their names, which may have changed."""
    found = load_file(path).values()
    return sorted(found, key=lambda each: (tuple(each.shape), each.flatten().tolist()))


def test_old_weights_give_the_same_predictions(run: Run) -> None:
    folder = run("evaluate.py", "eval.yaml", WEIGHTS)
    assert_same_scores(folder, ASSETS / "evaluated_head")


def test_the_pipeline_gives_the_same_answers(run: Run) -> None:
    folder = run("evaluate.py", "eval_pipeline.yaml", "model.blip.max_question_tokens=48")
    assert_same_scores(folder, ASSETS / "evaluated_pipeline")


def test_training_from_old_weights_has_the_same_losses_and_the_same_best(run: Run) -> None:
    folder = run("train.py", "train.yaml", WEIGHTS)
    assert_same_losses(folder, ASSETS / "whole")
    assert_same_scores(folder, ASSETS / "whole")
    now, before = tensors(folder / BEST), tensors(ASSETS / "cut" / BEST)
    for tensor, old in zip(now, before, strict=True):
        torch.testing.assert_close(tensor, old, atol=1e-5, rtol=0)


def test_an_old_state_goes_on_and_ends_as_the_run_that_was_not_cut_off(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "output" / "whole"
    shutil.copytree(ASSETS / "cut", folder)
    resume = "run.name=whole", f"run.resume={folder}"
    assert run("train.py", "train.yaml", WEIGHTS, *resume) == folder
    told = (folder / "log.txt").read_text(encoding="utf-8")
    assert "goes on after step 6" in told
    assert "best weights, of step 3" in told
    assert_same_losses(folder, ASSETS / "whole")
    assert_same_scores(folder, ASSETS / "whole")


@pytest.mark.parametrize(
    "call",
    [("evaluate.py", "eval.yaml", WEIGHTS), ("train.py", "train.yaml", "run.max_steps=1")],
    ids=["evaluate", "train"],
)
def test_one_line_says_that_old_keys_were_renamed(
    run: Run, capsys: pytest.CaptureFixture[str], call: tuple[str, ...]
) -> None:
    run(*call)
    written = capsys.readouterr()
    told = [line for line in (written.out + written.err).splitlines() if "model.blip" in line]
    assert len(told) == 1
    assert "model.streams.grid" in told[0]
