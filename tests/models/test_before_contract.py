"""Weights, states and configs of revision 869268d still give the same results.

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

from lavis_ext.models.pnp_vqa.model import PnpVqaFusion

PROJECT = Path(__file__).parents[2]
RELATIVE = Path("tests") / "assets" / "before_contract"
ASSETS = PROJECT / RELATIVE
WEIGHTS = f"model.fusion_weights={RELATIVE / 'weights.safetensors'}"
BEST = "fusion_encoder_best.safetensors"
SAME = 1e-6
SAME_METRIC = 1e-5
"""Tolerance of sums over a split, which depend on the order of addition."""

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
        # Samples drew single questions then.
        arguments += [f"run.output_dir={output}", "run.sample_by=examples", *options]
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        runpy.run_path(str(PROJECT / program), run_name="__main__")
        (folder,) = (path.parent for path in output.glob("*/metrics.json"))
        return folder

    return called


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Losses were computed by one thread, and are compared to the last digits."""
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
    """Every loss in a run's log, by kind and step."""
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
    """Compare the stored metrics; there may be new ones."""
    now = metrics(folder)
    for split, values in metrics(old).items():
        assert {n: now[split][n] for n in values} == pytest.approx(values, abs=SAME_METRIC), split
        if (old / f"{split}_predictions.json").exists():
            assert predictions(folder, split) == predictions(old, split)


def whole(named: dict[str, torch.Tensor]) -> torch.Tensor:
    """All tensors in one, in an order independent of their names, which may have changed."""
    ordered = sorted(named.values(), key=lambda each: (tuple(each.shape), each.flatten().tolist()))
    return torch.cat([each.flatten() for each in ordered])


def test_old_weights_give_the_same_predictions(run: Run) -> None:
    folder = run("evaluate.py", "eval.yaml", WEIGHTS)
    assert_same_scores(folder, ASSETS / "evaluated_head")


def test_the_pipeline_gives_the_same_answers(run: Run) -> None:
    folder = run("evaluate.py", "eval_pipeline.yaml", "model.blip.max_question_tokens=48")
    assert_same_scores(folder, ASSETS / "evaluated_pipeline")


def test_training_from_old_weights_has_the_same_losses_and_best_metric(run: Run) -> None:
    folder = run("train.py", "train.yaml", WEIGHTS)
    assert_same_losses(folder, ASSETS / "whole")
    assert_same_scores(folder, ASSETS / "whole")
    start, before = (load_file(ASSETS / name) for name in ("weights.safetensors", f"cut/{BEST}"))
    way = torch.cat([(before[name] - start[name]).flatten() for name in before]).norm()
    # Adam moves the biases of attention keys by rounding alone, since their gradients are 0; so
    # another CPU's weights differ by 0.7 % of the way that training takes them.
    assert (whole(load_file(folder / BEST)) - whole(before)).norm() < 0.02 * way


def test_an_old_state_resumes_and_ends_as_the_uninterrupted_run(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "output" / "whole"
    shutil.copytree(ASSETS / "cut", folder)
    resume = "run.name=whole", f"run.resume={folder}"
    assert run("train.py", "train.yaml", WEIGHTS, *resume) == folder
    text = (folder / "log.txt").read_text(encoding="utf-8")
    assert "resuming after step 6" in text
    assert "best weights, of step 3" in text
    assert_same_losses(folder, ASSETS / "whole")
    assert_same_scores(folder, ASSETS / "whole")


def test_saved_dropout_still_applies_to_attention() -> None:
    section = {
        "fusion": {"name": "difnet", "dropout": 0.1},
        "objectives": {
            "head": {"dropout": 0.2},
            "answer": {"dropout": 0.3, "attention_dropout": 0.0},  # saved since
            "itm": {"calibrated": True},
            "unknown": {"dropout": 0.4},
        },
    }
    PnpVqaFusion.complete_saved(section)
    assert section == {
        "fusion": {"name": "difnet", "dropout": 0.1, "attention_dropout": 0.1},
        "objectives": {
            "head": {"dropout": 0.2, "attention_dropout": 0.2},
            "answer": {"dropout": 0.3, "attention_dropout": 0.0},
            "itm": {"calibrated": True},
            "unknown": {"dropout": 0.4},
        },
    }


@pytest.mark.parametrize(
    "call",
    [("evaluate.py", "eval.yaml", WEIGHTS), ("train.py", "train.yaml", "run.max_steps=1")],
    ids=["evaluate", "train"],
)
def test_one_line_of_the_log_lists_renamed_keys(
    run: Run, capsys: pytest.CaptureFixture[str], call: tuple[str, ...]
) -> None:
    run(*call)
    written = capsys.readouterr()
    found = [line for line in (written.out + written.err).splitlines() if "model.blip" in line]
    assert len(found) == 1
    assert "model.streams.grid" in found[0]
