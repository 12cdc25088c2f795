"""Compare this checkout with an earlier revision: losses, scores, speed and time to import.

    python -m benchmarks.nothing_lost output/nothing_lost
    python -m benchmarks.nothing_lost output/nothing_lost --revision 869268d --no-speed

The earlier revision is checked out into the folder (``git worktree``; it stays there). Both train
the miniature's fusion by the earlier one's ``mini_train.yaml`` from the same initial weights, which
the earlier one draws, on the same mini-GQA with the same seed and one thread. The largest
difference of a step's losses must not exceed 1e-6, or the exit code is 1. Then both time their
training steps by turns (``benchmarks.speed --small``), and their import. Each checkout runs its own
``train.py`` and ``benchmarks.speed``; nothing else is required of the earlier one. Writes
``metrics.json`` and ``table.md``. The earlier revision's training is kept for later calls; this
checkout's is not.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import PROJECT, environment
from lavis_ext.common.files import write_json, written_aside
from lavis_ext.common.tables import markdown

REVISION = "869268d"
RECIPE = "projects/pnp-vqa/train/mini_train.yaml"
WEIGHTS = "fusion_encoder_best.safetensors"
SAME_LOSS = 1e-6
SAME_SPEED = 0.03
VARIANTS = ("straightforward", "live", "stored")
"""Variants of ``benchmarks.speed``: the reference, live encoders, and stored features."""
IMPORTS = 5
IMPORT = "import time; s = time.perf_counter(); import lavis_ext; print(time.perf_counter() - s)"

Losses = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Checkout:
    """A checked-out revision whose programs can be run."""

    name: str
    folder: Path

    def python(self, *arguments: str, threads: int = 1) -> str:
        """Run a program of the checkout; returns its standard output."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**environment(threads), "PYTHONPATH": str(self.folder)},
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            shown = " ".join(arguments)
            raise SystemExit(f"{self.name}: python {shown} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def train(self, recipe: Path, output: Path, name: str, *options: str) -> Path:
        """Train a run unless it is complete; returns its folder."""
        folder = output / name
        if not (folder / "metrics.json").exists():
            print(f"training {name} in {self.folder}", flush=True)
            arguments = ["train.py", "--cfg-path", str(recipe), "--options"]
            self.python(*arguments, f"run.output_dir={output}", f"run.name={name}", *options)
        return folder


def check_out(revision: str, folder: Path) -> Checkout:
    """Check out the earlier revision in ``folder`` on the first call."""
    git = ["git", "-C", str(PROJECT)]
    wanted = subprocess.run(
        [*git, "rev-parse", "--verify", f"{revision}^{{commit}}"],
        check=False,
        capture_output=True,
        text=True,
    )
    if wanted.returncode:
        raise SystemExit(f"--revision: unknown revision {revision}; fetch the history first.")
    commit = wanted.stdout.strip()
    if not folder.exists():
        subprocess.run([*git, "worktree", "add", "--detach", str(folder), commit], check=True)
    head = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    found = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    if found != commit:
        raise SystemExit(f"{folder} has revision {found}, not {commit}; give another folder.")
    return Checkout("before", folder)


def losses(folder: Path) -> Losses:
    """The losses of each training step in a run's log, by name."""
    entries = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {
        entry["step"]: {name: each for name, each in entry.items() if name.endswith("loss")}
        for entry in entries
        if entry["kind"] == "train"
    }


def largest_differences(before: Losses, after: Losses) -> dict[int, float]:
    """The largest difference of a loss by step."""
    if before.keys() != after.keys():
        raise SystemExit(f"steps differ: {sorted(before)} before, {sorted(after)} after")
    return {
        step: max(abs(value - after[step][name]) for name, value in values.items())
        for step, values in before.items()
    }


def compare_training(given: argparse.Namespace, both: Sequence[Checkout]) -> dict[str, Any]:
    """Losses by step, their differences, and validation scores of both."""
    old = both[0]
    common = [
        f"datasets.gqa_fusion.mini_gqa.root={given.out / f'data_{given.images}'}",
        f"datasets.gqa_fusion.mini_gqa.images={given.images}",
        f"run.seed={given.seed}",
        "run.test_splits=[]",
        "run.num_workers=0",
        "run.device=cpu",
    ]
    # A step with learning rate 0 leaves the initial weights unchanged.
    unmoved = ["run.max_steps=1", "run.warmup_steps=2", "run.warmup_lr=0", "run.valid_splits=[]"]
    label = f"{given.images}_{given.seed}"
    recipe = old.folder.resolve() / RECIPE  # today's may have other losses
    initial = old.train(recipe, given.out, f"initial_{label}", *common, *unmoved) / WEIGHTS
    ways = [f"model.fusion_weights={initial}", f"run.max_steps={given.steps}", "run.log_freq=1"]
    ways.append(f"run.val_every_steps={given.steps}")
    names = {each: f"{each.name}_{label}_{given.steps}" for each in both}
    shutil.rmtree(given.out / names[both[1]], ignore_errors=True)  # it may be of other code
    folders = [each.train(recipe, given.out, name, *common, *ways) for each, name in names.items()]
    before, after = map(losses, folders)
    scores = [json.loads((folder / "metrics.json").read_text())["val"] for folder in folders]
    return {
        "before": before,
        "after": after,
        "differences": largest_differences(before, after),
        "scores": dict(zip(("before", "after"), scores, strict=True)),
    }


def compare_speed(given: argparse.Namespace, both: Sequence[Checkout]) -> dict[str, Any]:
    """Questions per second of each variant, and the ratio to the reference.

    The checkouts alternate, so that other load on the machine affects both. Of a round's steps, the
    fastest counts, because load only slows steps down.
    """
    rates: dict[str, dict[str, list[float]]] = {
        each.name: {variant: [] for variant in VARIANTS} for each in both
    }

    def measured(each: Checkout, only: str) -> Any:
        out, seconds = str(given.out / f"speed_{each.name}"), str(given.seconds)
        arguments = ["-m", "benchmarks.speed", out, "--small", "--threads", "1", "--device", "cpu"]
        arguments += ["--seconds", seconds, "--only", only]
        return json.loads(each.python(*arguments).strip().splitlines()[-1])

    for each in both:
        measured(each, "features")
    for turn in range(given.rounds):
        for variant in VARIANTS:
            for each in both if turn % 2 else reversed(both):
                rates[each.name][variant].append(max(measured(each, variant)["rates"]))
        print(f"speed: round {turn + 1} of {given.rounds}", flush=True)
    found: dict[str, Any] = {}
    for name, by_variant in rates.items():
        best = {variant: max(values) for variant, values in by_variant.items()}
        found[name] = {
            variant: {
                "examples_per_second": best[variant],
                "rounds": values,
                "times_straightforward": best[variant] / best["straightforward"],
            }
            for variant, values in by_variant.items()
        }
    return found


def compare_imports(both: Sequence[Checkout]) -> dict[str, float]:
    """Seconds of ``import lavis_ext``, best of several."""
    seconds: dict[str, list[float]] = {each.name: [] for each in both}
    for _ in range(IMPORTS):
        for each in both:
            seconds[each.name].append(float(each.python("-c", IMPORT)))
    return {name: min(values) for name, values in seconds.items()}


def table(found: dict[str, Any]) -> str:
    """All comparisons as Markdown tables."""
    training = found["training"]
    rows = []
    for step, difference in training["differences"].items():
        pair = [training[name][step]["loss"] for name in ("before", "after")]
        rows.append((str(step), f"{pair[0]:.6f}", f"{pair[1]:.6f}", f"{difference:.1e}"))
    parts = [markdown(rows, ("step", "loss before", "loss after", "largest difference"))]
    worst = max(training["differences"].values())
    parts.append(f"Largest difference of a loss: {worst:.1e} (at most {SAME_LOSS:.0e}).")
    before, after = (training["scores"][name] for name in ("before", "after"))
    scores = [
        (name, f"{before[name]:.4f}", f"{after[name]:.4f}")
        for name in before
        if name in after and (name.endswith("accuracy") or name == "loss")
    ]
    parts.append(markdown(scores, ("on val", "before", "after")))
    if speed := found.get("speed"):
        speeds = []
        for variant in VARIANTS:
            pair, times = (
                [speed[name][variant][key] for name in ("before", "after")]
                for key in ("examples_per_second", "times_straightforward")
            )
            ratio = pair[1] / pair[0]
            mark = "" if abs(ratio - 1) <= SAME_SPEED else " (differs)"
            numbers = (f"{pair[0]:.4g}", f"{pair[1]:.4g}", f"{ratio:.3f}{mark}")
            speeds.append((variant, *numbers, f"{times[0]:.3g}", f"{times[1]:.3g}"))
        header = ("questions/s", "before", "after", "after / before", "times before", "after")
        parts.append(markdown(speeds, header))
    imports = found["import_seconds"]
    parts.append(f"import lavis_ext: {imports['before']:.3f} s, now {imports['after']:.3f} s.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Compare, write and print the table; exit with 1 if losses differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the earlier checkout, runs and tables")
    parser.add_argument("--revision", default=REVISION, help="earlier revision (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="training steps (%(default)s)")
    parser.add_argument("--images", type=int, default=600, help="images of mini-GQA (%(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="seed of both runs (%(default)s)")
    parser.add_argument("--no-speed", action="store_true", help="skip the speed comparison")
    parser.add_argument(
        "--rounds", type=int, default=4, help="rounds of the speed comparison (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of a variant's steps a round (%(default)s)"
    )
    given = parser.parse_args()
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    both = [check_out(given.revision, given.out / "checkout"), Checkout("after", PROJECT)]
    found: dict[str, Any] = {"revision": given.revision}
    found["training"] = compare_training(given, both)
    found["import_seconds"] = compare_imports(both)
    if not given.no_speed:
        found["speed"] = compare_speed(given, both)
    write_json(given.out / "metrics.json", found)
    text = table(found)
    with written_aside(given.out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text)
    if max(found["training"]["differences"].values()) > SAME_LOSS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
