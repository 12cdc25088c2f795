"""Does fusion pay? Every fusion, in every world and use, with paired intervals.

    python -m benchmarks.fusion_study output/fusion
    python -m benchmarks.fusion_study output/fusion --studies fine-answer --fusions difnet

Trains by ``train.py`` and measures by ``evaluate.py``, with the recipes in ``projects/pnp-vqa``;
finished runs are kept and not repeated, so that more fusions, studies and seeds extend a folder.
Writes ``metrics.json``, ``tables.md`` and ``differences.svg``, from which docs/fusion.md is made.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks import plots
from benchmarks.runs import Run, Runs
from lavis_ext.common.files import write_json, written_aside
from lavis_ext.common.tables import markdown
from lavis_ext.sweep.differences import Difference, Repetition, paired_difference

FIRST = "first_only"
"""What the others are compared with: BLIP alone."""
FUSIONS: dict[str, tuple[str, ...]] = {
    FIRST: ("name=first_only",),
    "others_only": ("name=others_only",),
    "others in windows": ("name=channel_concat", "finer=windows", "first=false", "gate=false"),
    "others by convolutions": (
        "name=channel_concat",
        "finer=convolutions",
        "first=false",
        "gate=false",
    ),
    "sum": ("name=sum",),
    "difnet": (),
    "channel_concat": ("name=channel_concat",),
    "channel_concat, windows": ("name=channel_concat", "finer=windows"),
    "channel_concat, convolutions": ("name=channel_concat", "finer=convolutions"),
    "local_cross_attention": ("name=local_cross_attention", "heads=4"),
    "spatial_aggregator": ("name=spatial_aggregator",),
    "gated_adapter": ("name=gated_adapter",),
    "expert_attention": ("name=expert_attention",),
}
"""Options of ``model.fusion``; difnet's are those of the model type."""


@dataclass(frozen=True)
class Study:
    """A world and a use of fused tokens.

    Attributes:
        title: of the table's column.
        train: recipe of the training.
        evaluate: recipe of the evaluation on its weights; empty for the training's own on testdev.
        metric: what is compared.
        part: fusion that is chosen, ``model.`` before it.
    """

    title: str
    train: str
    evaluate: str
    metric: str
    part: str = "fusion"


STUDIES = {
    "mini-answer": Study("mini: answers of `answer`", "mini_train", "", "answer_accuracy"),
    "mini-pointing": Study("mini: pointing", "mini_train", "mini_pointing", "pointing_accuracy"),
    "mini-pipeline": Study(
        "mini: answers of the pipeline", "mini_train", "mini_eval", "answer_accuracy"
    ),
    "fine-answer": Study("fine: answers of `answer`", "fine_answer", "", "answer_accuracy"),
    "fine-pointing": Study("fine: pointing", "fine_train", "fine_pointing", "pointing_accuracy"),
}


@dataclass(frozen=True)
class Cell:
    """What a fusion reaches in a study: values by seed, and the difference from ``FIRST``."""

    values: list[float]
    difference: Difference | None


def run_of(runs: Runs, study: Study, options: Sequence[str], which: tuple[str, int]) -> Run:
    """The run with a study's metric, of a fusion with a seed."""
    fusion, seed = which
    chosen = [f"model.{study.part}.{option}" for option in FUSIONS[fusion]]
    name = f"{fusion.replace(', ', '-').replace(' ', '-')}-{seed}"
    trained = runs.train(study.train, name, [*chosen, f"run.seed={seed}", *options])
    if not study.evaluate:
        return trained
    return runs.evaluate(study.evaluate, runs.out / study.evaluate / name, trained.weights)


def cells_of(found: Mapping[str, Mapping[int, Run]], metric: str) -> dict[str, Cell]:
    """Cells by fusion, from its runs by seed. One of the fusions is ``FIRST``."""
    repetitions = {
        fusion: {
            str(seed): Repetition(run.metrics[metric], run.by_image) for seed, run in runs.items()
        }
        for fusion, runs in found.items()
    }
    return {
        fusion: Cell(
            [run.metrics[metric] for run in runs.values()],
            None
            if fusion == FIRST
            else paired_difference(repetitions[FIRST], repetitions[fusion], metric),
        )
        for fusion, runs in found.items()
    }


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def points(difference: Difference | None) -> str:
    """A difference of shares in percentage points, with its interval."""
    if difference is None or difference.low is None or difference.high is None:
        return ""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.value:+.1f} ({low:+.1f} to {high:+.1f})"


def table(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """Rows of fusions, two columns a study."""
    fusions = [name for name in FUSIONS if any(name in cells for cells in found.values())]
    rows = []
    for fusion in fusions:
        row = [f"`{fusion}`"]
        for cells in found.values():
            cell = cells.get(fusion)
            row += ["", ""] if cell is None else [percent(cell.values), points(cell.difference)]
        rows.append(row)
    header = ["fusion"]
    for name in found:
        header += [f"{STUDIES[name].title}, %", "difference, points"]
    return markdown(rows, header) + "\n"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of runs and tables")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--fusions", nargs="+", choices=FUSIONS, default=list(FUSIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (%(default)s)")
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="KEY=VALUE", help="of all trainings"
    )
    given = parser.parse_args(arguments)
    if FIRST not in given.fusions:
        given.fusions.insert(0, FIRST)
    return given


def measure(given: argparse.Namespace) -> dict[str, dict[str, Cell]]:
    """Cells by study and fusion."""
    runs = Runs(given.out.resolve(), given.threads)
    found = {}
    for name in given.studies:
        study = STUDIES[name]
        pairs = [(fusion, seed) for seed in given.seeds for fusion in given.fusions]
        with ThreadPoolExecutor(given.jobs) as pool:
            done = pool.map(partial(run_of, runs, study, given.options), pairs)
        by_fusion: dict[str, dict[int, Run]] = {fusion: {} for fusion in given.fusions}
        for (fusion, seed), run in zip(pairs, done, strict=True):
            by_fusion[fusion][seed] = run
        found[name] = cells_of(by_fusion, study.metric)
        write(given.out, found)
    return found


def write(out: Path, found: Mapping[str, Mapping[str, Cell]]) -> None:
    """Write metrics, table and plot."""
    write_json(
        out / "metrics.json",
        {
            name: {each: asdict(cell) for each, cell in cells.items()}
            for name, cells in found.items()
        },
    )
    with written_aside(out / "tables.md") as path:
        path.write_text(table(found), encoding="utf-8")
    plots.draw_differences(
        {
            STUDIES[name].title.replace("`", ""): {
                fusion: cell.difference for fusion, cell in cells.items() if cell.difference
            }
            for name, cells in found.items()
        },
        out / "differences.svg",
    )


def main() -> None:
    """Train, measure and compare."""
    print(table(measure(parse_arguments())))


if __name__ == "__main__":
    main()
