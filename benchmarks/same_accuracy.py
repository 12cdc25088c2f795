"""Compare accuracy and training time of the miniature, trained in two ways.

    python -m benchmarks.same_accuracy output/same_accuracy
    python -m benchmarks.same_accuracy output/attention_dropout --compare dropout --steps 300

The first compares the straightforward way with the fast one, which is the shipped recipe at half
its length, in an hour on one core; the second dropout of 0.1 without and with attention
probabilities, in forty minutes. Both ways of a comparison use ``train.py`` on mini-GQA with the
same number of questions per step and of steps, for several seeds. Writes ``metrics.json``,
``table.md`` and ``accuracy.svg``. Finished runs are not repeated.
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
from benchmarks.straightforward import AS_MEASURED
from lavis_ext.common.files import write_json, written_aside
from lavis_ext.common.tables import markdown

RECIPE = "projects/pnp-vqa/train/mini_train.yaml"
COMPARISONS = {
    "optimizations": ("straightforward", "fast"),
    "dropout": ("dropout_but_on_attention", "dropout_on_attention_too"),
}
DROPOUT = 0.1
DROPPING = ("model.fusion", "model.objectives.answer")
METRICS = ("answer_accuracy", "itm_accuracy", "loss")


def options_of(way: str, questions: int) -> list[str]:
    """Options that make the recipe train this way, with ``questions`` per step."""
    whole = [f"run.batch_size_train={questions}"]
    if way == "fast":
        return whole
    if way in COMPARISONS["dropout"]:
        hidden = [f"{section}.dropout={DROPOUT}" for section in DROPPING]
        attention = [f"{section}.attention_dropout={DROPOUT}" for section in DROPPING]
        return [*whole, *hidden, *(attention if way == "dropout_on_attention_too" else ())]
    return [
        "imports=[benchmarks.straightforward]",
        "run.task=straightforward",
        "run.batch_size_train=1",
        "run.examples_per_image=1",
        f"run.accum_grad_iters={questions}",
    ]


def train(given: argparse.Namespace, way: str, seed: int) -> Path:
    """Train a run; returns its folder."""
    where: Path = given.out / f"{way}-{seed}-{given.steps}x{given.questions}"
    if not list(where.glob("*/metrics.json")):
        where.mkdir(parents=True, exist_ok=True)
        every = max(1, given.steps // given.points)
        options = [
            *AS_MEASURED,
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
    """Validations of a run with training questions and training seconds so far."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    points: list[dict[str, float]] = []
    step, seconds, questions = 0, 0.0, 0.0
    for entry in map(json.loads, lines):
        if entry["kind"] == "train":
            taken = (entry["step"] - step) * questions_a_step
            step, questions = entry["step"], questions + taken
            seconds += taken / entry["examples_per_second"]
        elif entry["kind"] == "val" and (not points or points[-1]["step"] < entry["step"]):
            metrics = {name: entry[name] for name in METRICS}
            points.append({"step": step, "questions": questions, "seconds": seconds, **metrics})
    return points


def table(curves: Mapping[str, list[list[dict[str, float]]]]) -> str:
    """Final metrics of each way, in Markdown."""
    header = (
        "",
        "questions",
        "seconds of training",
        "questions/s",
        "answers right on val",
        "pairs right on val",
        "loss on val",
    )
    rows = []
    for way, runs in curves.items():
        ends = [points[-1] for points in runs]

        def cell(name: str, scale: float, digits: int, ends: list[dict[str, float]] = ends) -> str:
            values = [scale * end[name] for end in ends]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.{digits}f}{spread}"

        rate = statistics.mean(end["questions"] / end["seconds"] for end in ends)
        rows.append(
            (
                way,
                f"{ends[0]['questions']:,.0f}",
                cell("seconds", 1, 0),
                f"{rate:.3g}",
                f"{cell('answer_accuracy', 100, 1)} %",
                f"{cell('itm_accuracy', 100, 1)} %",
                cell("loss", 1, 3),
            )
        )
    return markdown(rows, header) + "\n"


def main() -> None:
    """Train both ways and write metrics, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--compare",
        choices=COMPARISONS,
        default="optimizations",
        help="what the two ways differ in (%(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=(1, 2, 3), help="seeds of each way (1 2 3)"
    )
    parser.add_argument("--steps", type=int, default=150, help="steps of a run (%(default)s)")
    parser.add_argument(
        "--questions", type=int, default=128, help="questions per step (%(default)s)"
    )
    parser.add_argument("--points", type=int, default=5, help="validations (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="of all runs")
    given = parser.parse_args()
    given.out = given.out.resolve()
    ways = COMPARISONS[given.compare]
    runs = [(way, seed) for way in ways for seed in given.seeds]
    train(given, ways[-1], given.seeds[0])  # alone: the first run draws mini-GQA
    with ThreadPoolExecutor(given.jobs) as pool:
        folders = list(pool.map(lambda run: train(given, *run), runs))
    curves: dict[str, list[list[dict[str, float]]]] = {way: [] for way in ways}
    for (way, _), folder in zip(runs, folders, strict=True):
        curves[way].append(curve(folder, given.questions))
    text = table(curves)
    write_json(given.out / "metrics.json", curves)
    with written_aside(given.out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    plots.draw_accuracy(
        {
            way: [[(point["seconds"], point["answer_accuracy"]) for point in run] for run in found]
            for way, found in curves.items()
        },
        f"The miniature's fusion, {given.steps * given.questions:,} questions, "
        f"{len(given.seeds)} seeds each",
        given.out / "accuracy.svg",
    )
    print(text)


if __name__ == "__main__":
    main()
