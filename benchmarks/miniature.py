"""Measure the miniature on mini-GQA: fusions by seeds, pointing, masks, and patches by captions.

    python -m benchmarks.miniature output/bench

All metrics come from ``train.py`` and ``evaluate.py``, called as by a user. The folder keeps all
runs, ``metrics.json`` and ``tables.md``; an interrupted call is resumed by the next one.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runs import SPLIT, Metrics, Run, Runs
from lavis_ext.common.tables import markdown

FUSIONS = ("difnet", "sum", "first_only", "others_only")
PATCHES = ("guided", "uniform", "all")
CAPTIONS = (2, 5, 20)
COMPARED = 100
"""Questions answered again with other batch sizes and by two processes."""


@dataclass(frozen=True)
class Bench:
    """The runs, and how many questions the pipeline answers."""

    runs: Runs
    questions: int

    def train(self, fusion: str, seed: int) -> Run:
        """Train a fusion."""
        named = [] if fusion == "difnet" else [f"model.fusion.name={fusion}"]
        return self.runs.train("mini_train", f"{fusion}-{seed}", [*named, f"run.seed={seed}"])

    def pointing(self, fusion: str, seed: int) -> Metrics:
        """Metrics of pointing and masks with trained weights."""
        return self._evaluated("mini_pointing", fusion, seed, "pointing", [])

    def answers(self, fusion: str, seed: int, name: str, options: list[str]) -> Metrics:
        """Metrics of the pipeline's answers with trained weights."""
        sized = [f"run.small_test_size={self.questions}", *options]
        return self._evaluated("mini_eval", fusion, seed, name, sized)

    def same_answers(self, fusion: str, seed: int) -> Metrics:
        """Number of ``COMPARED`` answers that differ with other batch sizes and processes."""
        variants = {
            "batches-of-16": (["run.batch_size_eval=16"], 1),
            "batches-of-1": (["run.batch_size_eval=1"], 1),
            "two-processes": (["run.batch_size_eval=16"], 2),
        }
        answers = {}
        for name, (options, processes) in variants.items():
            where = self.runs.out / "same" / name
            weights = self.train(fusion, seed).weights
            options = [f"run.small_test_size={COMPARED}", *options, *weights]
            run = self.runs.evaluate("mini_eval", where, options, processes)
            text = (run.folder / f"{SPLIT}_predictions.json").read_text(encoding="utf-8")
            answers[name] = {each["questionId"]: each["prediction"] for each in json.loads(text)}
        first, *others = answers.values()
        assert len(first) == COMPARED
        return {
            name: float(sum(first[question] != other[question] for question in first))
            for name, other in zip(list(variants)[1:], others, strict=True)
        }

    def _evaluated(
        self, recipe: str, fusion: str, seed: int, name: str, options: list[str]
    ) -> Metrics:
        where = self.runs.out / name / f"{fusion}-{seed}"
        options = [*self.train(fusion, seed).weights, *options]
        return self.runs.evaluate(recipe, where, options).metrics


def measure(bench: Bench, seeds: int, jobs: int) -> dict[str, list[Metrics]]:
    """Metrics by measurement, one entry per seed."""
    runs = [(fusion, seed) for seed in range(1, seeds + 1) for fusion in FUSIONS]
    named: dict[str, Callable[[str, int], Metrics]] = {
        "training": lambda fusion, seed: bench.train(fusion, seed).metrics,
        "pointing": bench.pointing,
        "answers": lambda fusion, seed: bench.answers(fusion, seed, "answers", []),
    }
    found: dict[str, list[Metrics]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for measurement, function in named.items():
            for (fusion, _), metrics in zip(
                runs, pool.map(lambda run, f=function: f(*run), runs), strict=True
            ):
                found.setdefault(f"{measurement}/{fusion}", []).append(metrics)
        grid = [(choose, captions) for choose in PATCHES for captions in CAPTIONS]
        sampling = "model.captioner.sampling"
        options = [
            [f"{sampling}.patches.choose={choose}", f"{sampling}.num_captions={captions}"]
            for choose, captions in grid
        ]
        results = pool.map(
            lambda cell, given: bench.answers("difnet", 1, f"{cell[0]}-{cell[1]}", given),
            grid,
            options,
        )
        for (choose, captions), metrics in zip(grid, results, strict=True):
            found[f"patches/{choose}/{captions}"] = [metrics]
    found["same_answers"] = [bench.same_answers("difnet", 1)]
    return found


def tables(found: Mapping[str, list[Metrics]]) -> str:
    """The metrics as three tables in Markdown."""

    def cell(measurement: str, metric: str) -> str:
        values = [100 * each[metric] for each in found[measurement]]
        if len(values) == 1:
            return f"{values[0]:.1f}"
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"

    rows = []
    for fusion in FUSIONS:
        cells = [cell(f"pointing/{fusion}", "pointing_accuracy")]
        cells += [cell(f"pointing/{fusion}", f"{kind}_heat_iou") for kind in ("raw", "refined")]
        cells += [cell(f"answers/{fusion}", "answer_accuracy")]
        cells += [cell(f"training/{fusion}", "answer_accuracy")]
        rows.append((f"`{fusion}`", *cells))
    chance = cell("pointing/difnet", "chance_accuracy").split(" ")[0]
    rows.append(("by chance", chance, "", "", "", ""))
    header = (
        "fusion",
        "pointing",
        "raw heat IoU",
        "refined heat IoU",
        "answers of the pipeline",
        "answers of the classifier",
    )
    patches = [
        (choose, *(cell(f"patches/{choose}/{count}", "answer_accuracy") for count in CAPTIONS))
        for choose in PATCHES
    ]
    differing = [f"Answers that differ, of {COMPARED}, from those in batches of 16:"]
    differing += [f"{count:.0f} with {name}." for name, count in found["same_answers"][0].items()]
    parts = [
        markdown(rows, header),
        markdown(patches, ("patches", *(f"{count} captions" for count in CAPTIONS))),
        "\n".join(differing),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of runs and tables")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each fusion (%(default)s)")
    parser.add_argument(
        "--questions", type=int, default=500, help="answered questions (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (%(default)s)")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="of all runs")
    given = parser.parse_args()
    out = given.out.resolve()
    bench = Bench(Runs(out, given.threads, given.options), given.questions)
    found = measure(bench, given.seeds, given.jobs)
    (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = tables(found)
    (out / "tables.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
