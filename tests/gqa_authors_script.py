"""Run GQA's own evaluation script beside ours; it comes with GQA (``eval.zip``), not with this.

    python -m lavis_ext.datasets.gqa.download data/gqa --parts eval
    python -m tests.gqa_authors_script data/gqa/eval/eval.py output/gqa_parity

prints every metric that both print, on 5,000 questions of mini-GQA. With ``--store`` it makes
``tests/assets/parity/gqa_scores.json`` again, which the tests compare with instead.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from lavis_ext.common.tables import show, table
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.evaluation.gqa.__main__ import main as score
from tests.gqa_rule import write_files

BREAKDOWNS = {
    "structural": "accuracyPerStructuralType",
    "semantic": "accuracyPerSemanticType",
    "steps": "accuracyPerSteps",
    "words": "accuracyPerLength",
}
METRICS = (
    "binary",
    "open",
    "accuracy",
    "consistency",
    "validity",
    "plausibility",
    "grounding",
    "distribution",
)
CANNOT_RUN = "x0, y0, x1, y1, attention in cells]"
CORRECTED = "x0, y0, x1, y1, attention in attentionMap]"


def authors_scores(script: Path, files: dict[str, Path], regions: bool) -> dict[str, Any]:
    """The dictionary ``scores`` that the script is left with."""
    options = [f"--{name}={path}" for name, path in files.items()]
    options += ["--tier=train", "--consistency", "--grounding"]
    if regions:
        corrected = files["predictions"].parent / "eval_regions.py"
        corrected.write_text(script.read_text().replace(CANNOT_RUN, CORRECTED))
        script, options = corrected, [*options, "--objectFeatures"]
    with (
        mock.patch.object(sys, "argv", [str(script), *options]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        found: dict[str, Any] = runpy.run_path(str(script), run_name="__main__")["scores"]
    return found


def our_scores(files: dict[str, Path], regions: bool) -> dict[str, Any]:
    """The JSON that our command writes."""
    out = files["predictions"].parent / "ours.json"
    options = [f"--{name}={path}" for name, path in files.items()]
    options += ["--consistency", "--resamples=0", f"--json={out}"]
    with contextlib.redirect_stdout(io.StringIO()):
        score([*options, *(["--objectFeatures"] if regions else [])])
    written: dict[str, Any] = json.loads(out.read_text())
    return written


def draw(folder: Path, images: int, questions: int) -> dict[str, Path]:
    """Files with the first ``questions`` balanced ones of mini-GQA's training split.

    All questions about their images are there too, as consistency needs them.
    """
    root = folder / f"mini_gqa_{images}"
    make_mini_gqa(root, images=images)
    records = json.loads((root / "questions" / "train_all_questions.json").read_text())
    kept: dict[str, Any] = {}
    seen: set[str] = set()
    balanced = 0
    for name, record in records.items():
        if balanced == questions and record["imageId"] not in seen:
            break
        seen.add(record["imageId"])
        record["isBalanced"] = record["isBalanced"] and balanced < questions
        balanced += record["isBalanced"]
        kept[name] = record
    path = folder / "train_all_questions.json"
    path.write_text(json.dumps(kept))
    choices = root / "choices" / "train_choices.json"
    write_files(path, choices, folder)
    return {
        "questions": path,
        "predictions": folder / "predictions.json",
        "choices": choices,
        "scenes": root / "sceneGraphs" / "train_sceneGraphs.json",
        "attentions": folder / "maps.json",
    }


def main() -> None:
    """Print the table, or store the metrics."""
    parser = argparse.ArgumentParser(description="GQA's own evaluation script beside ours.")
    parser.add_argument("script", type=Path, help="the authors' eval.py")
    parser.add_argument("folder", type=Path, help="where data and predictions go")
    parser.add_argument("--store", action="store_true", help="rewrite the tests' expected metrics")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    images, questions = (40, sys.maxsize) if arguments.store else (800, 5000)
    files = draw(arguments.folder, images, questions)
    of_regions = {**files, "attentions": files["attentions"].with_name("regions.json")}
    authors = authors_scores(arguments.script, files, False)
    regions = authors_scores(arguments.script, of_regions, True)["grounding"]
    if arguments.store:
        breakdowns = {name: authors[theirs] for name, theirs in BREAKDOWNS.items()}
        stored = {
            "metrics": {name: authors[name] for name in METRICS},
            "grounding_of_regions": regions,
            "breakdowns": breakdowns,
        }
        path = Path(__file__).parent / "assets" / "parity" / "gqa_scores.json"
        path.write_text(json.dumps(stored, indent=1) + "\n")
        return
    ours = our_scores(files, False)
    our_regions = our_scores(of_regions, True)["metrics"]["grounding"]["value"]
    rows = [
        (name, authors[name], _printed(name, ours["metrics"][name]["value"])) for name in METRICS
    ]
    rows.append(("grounding, regions", regions, 100 * our_regions))
    for name, theirs in BREAKDOWNS.items():
        accuracies = ours["breakdowns"][name]
        rows += [
            (f"{name} {kind}", value, 100 * accuracies[str(kind)]["value"])
            for kind, (value, _) in sorted(authors[theirs].items())
        ]
    pairs = [(name, f"{theirs:.2f}", f"{other:.2f}") for name, theirs, other in rows]
    compared = [(*each, "equal" if each[1] == each[2] else "DIFFERENT") for each in pairs]
    show(table(compared, ("metric", "authors", "ours", "")))


def _printed(name: str, value: float) -> float:
    return value if name == "distribution" else 100 * value


if __name__ == "__main__":
    main()
