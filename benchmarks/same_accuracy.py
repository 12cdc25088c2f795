"""Train the miniature the straightforward way and the fast one: how well, and in what time.

    python -m benchmarks.same_accuracy output/same_accuracy

Both are ``train.py`` on mini-GQA with as many questions a step and as many steps, by each of a few
seeds; the fast way is the recipe as it ships, of half its length. It takes an hour on one core.
Writes ``figures.json``, ``table.md`` and ``accuracy.svg``. Runs that are done are not repeated.
"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import plots
from benchmarks.processes import PROJECT, command, environment
from lavis_ext.common.files import write_json, written_aside

RECIPE = "projects/pnp-vqa/train/mini_train.yaml"
WAYS = ("straightforward", "fast")
FIGURES = ("answer_accuracy", "itm_accuracy", "loss")


def options_of(way: str, questions: int) -> list[str]:
    """What makes a run of the recipe one of this way, with so many questions a step."""
    if way == "fast":
        return [f"run.batch_size_train={questions}"]
    return [
        "imports=[benchmarks.straightforward]",
        "run.task=straightforward",
        "run.batch_size_train=1",
        "run.examples_per_image=1",
        f"run.accum_grad_iters={questions}",
    ]


def train(given: argparse.Namespace, way: str, seed: int) -> Path:
    """The folder of a run."""
    where: Path = given.out / f"{way}-{seed}-{given.steps}x{given.questions}"
    if not list(where.glob("*/metrics.json")):
        where.mkdir(parents=True, exist_ok=True)
        every = max(1, given.steps // given.points)
        options = [
            *options_of(way, given.questions),
            f"run.seed={seed}",
            f"run.max_steps={given.steps}",
            "run.max_epoch=100",
            f"run.val_every_steps={every}",
            f"run.log_freq={every}",
            f"run.warmup_steps={given.steps // 6}",
            "run.test_splits=[]",
            f"run.output_dir={where}",
            *given.options,
        ]
        with (where / "output.txt").open("w", encoding="utf-8") as output:
            subprocess.run(
                command(["train.py", "--cfg-path", RECIPE, "--options", *options]),
                cwd=PROJECT,
                env=environment(threads=1),
                stdout=output,
                stderr=subprocess.STDOUT,
                check=True,
            )
        print(f"done: {where}", flush=True)
    return next(iter(where.glob("*/metrics.json"))).parent


def curve(folder: Path, questions_a_step: int) -> list[dict[str, float]]:
    """Validations of a run: questions trained on, seconds of training (validations left out)."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    points: list[dict[str, float]] = []
    step, seconds, questions = 0, 0.0, 0.0
    for entry in map(json.loads, lines):
        if entry["kind"] == "train":
            taken = (entry["step"] - step) * questions_a_step
            step, questions = entry["step"], questions + taken
            seconds += taken / entry["examples_per_second"]
        elif not points or points[-1]["step"] < entry["step"]:
            figures = {name: entry[name] for name in FIGURES}
            points.append({"step": step, "questions": questions, "seconds": seconds, **figures})
    return points


def table(curves: Mapping[str, list[list[dict[str, float]]]]) -> str:
    """How the runs ended, in Markdown."""
    rows = [
        "| | questions | seconds of training | questions/s | answers right on val "
        "| pairs right on val | loss on val |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way, runs in curves.items():
        ends = [points[-1] for points in runs]

        def cell(name: str, scale: float, digits: int, ends: list[dict[str, float]] = ends) -> str:
            values = [scale * end[name] for end in ends]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.{digits}f}{spread}"

        rate = statistics.mean(end["questions"] / end["seconds"] for end in ends)
        rows.append(
            f"| {way} | {ends[0]['questions']:,.0f} | {cell('seconds', 1, 0)} | {rate:.3g} "
            f"| {cell('answer_accuracy', 100, 1)} % | {cell('itm_accuracy', 100, 1)} % "
            f"| {cell('loss', 1, 3)} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Train, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="of each way (%(default)s)")
    parser.add_argument("--steps", type=int, default=150, help="of a run (%(default)s)")
    parser.add_argument("--questions", type=int, default=128, help="a step (%(default)s)")
    parser.add_argument("--points", type=int, default=5, help="validations (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="of all runs")
    given = parser.parse_args()
    given.out = given.out.resolve()
    runs = [(way, seed) for way in WAYS for seed in range(1, given.seeds + 1)]
    train(given, "fast", 1)  # alone: the first run draws mini-GQA
    with ThreadPoolExecutor(given.jobs) as pool:
        folders = list(pool.map(lambda run: train(given, *run), runs))
    curves: dict[str, list[list[dict[str, float]]]] = {way: [] for way in WAYS}
    for (way, _), folder in zip(runs, folders, strict=True):
        curves[way].append(curve(folder, given.questions))
    text = table(curves)
    write_json(given.out / "figures.json", curves)
    with written_aside(given.out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    plots.draw_accuracy(
        {
            way: [[(point["seconds"], point["answer_accuracy"]) for point in run] for run in found]
            for way, found in curves.items()
        },
        f"The miniature's fusion, {given.steps * given.questions:,} questions, "
        f"{given.seeds} seeds each",
        given.out / "accuracy.svg",
    )
    print(text)


if __name__ == "__main__":
    main()
