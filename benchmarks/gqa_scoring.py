"""Measure ``python -m lavis_ext.evaluation.gqa`` on a file of the size of GQA's validation split.

    python -m benchmarks.gqa_scoring output/gqa_scoring

Writes synthetic questions in GQA's format to the folder, with predictions, choices, scene graphs
and attention maps (they are reused), scores them in separate processes, and prints wall-clock and
CPU seconds and peak memory, in MB of 2**20 bytes, as JSON. ``--all`` is the number of all
questions, of which ``--balanced`` are balanced; GQA's ``val_all_questions`` has 2011853. A large
question file is converted on first use; scoring with and without conversion is measured.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BALANCED = 132_062
QUESTIONS_AN_IMAGE = 13
COLORS = [f"color{number}" for number in range(30)]
KINDS = ("query", "verify", "logical", "choose", "compare")
MAP_SIDE = 7
OBJECTS = 16


def write_files(folder: Path, balanced: int, every: int) -> None:
    """Write all files of ``every`` questions, of which ``balanced`` are balanced."""
    folder.mkdir(parents=True)
    share = QUESTIONS_AN_IMAGE * every // balanced
    rng = random.Random(0)
    answers = [rng.choice(COLORS) for _ in range(every)]
    is_balanced = [i * balanced // every != (i + 1) * balanced // every for i in range(every)]
    with (folder / "questions.json").open("w", encoding="utf-8") as file:
        _write_members(
            file, (_record(i, answers[i], is_balanced[i], share, every) for i in range(every))
        )
    with (folder / "choices.json").open("w", encoding="utf-8") as file:
        choices = {"valid": COLORS, "plausible": COLORS[:20]}
        _write_members(file, ((_id(i), choices) for i in range(every)))
    with (folder / "scenes.json").open("w", encoding="utf-8") as file:
        _write_members(file, (_scene(image) for image in range(every // share + 1)))
    predictions = [answer if rng.random() < 0.6 else rng.choice(COLORS) for answer in answers]
    _write_list(folder / "predictions.json", "prediction", enumerate(predictions))
    row = [round(1 / MAP_SIDE**2, 4)] * MAP_SIDE
    maps = ((i, [row] * MAP_SIDE) for i in range(every) if is_balanced[i])
    _write_list(folder / "attentions.json", "attention", maps)


def _record(
    number: int, answer: str, balanced: bool, share: int, every: int
) -> tuple[str, dict[str, Any]]:
    image, thing = number // share, number % OBJECTS
    kind = KINDS[number % len(KINDS)]
    nearby = [number + step for step in range(-2, 4)]
    return _id(number), {
        "semantic": [
            {"operation": "select", "dependencies": [], "argument": f"thing ({thing})"},
            {"operation": "relate", "dependencies": [0], "argument": f"part,of,s ({thing + 1})"},
            {"operation": "query", "dependencies": [1], "argument": "color"},
        ],
        "entailed": [_id(other) for other in nearby if 0 <= other < every],
        "equivalent": [_id(number)],
        "question": f"What color is the part of the thing that stands next to number {number}?",
        "imageId": str(image),
        "isBalanced": balanced,
        "groups": {"global": f"group{number % 200}", "local": f"10q-thing_{number % 999}"},
        "answer": answer,
        "semanticStr": f"select: thing ({thing})->relate: part,of,s [0]->query: color [1]",
        "annotations": {
            "answer": {},
            "question": {"4": str(thing), "7:9": str((thing + 1) % OBJECTS)},
            "fullAnswer": {"1": str(thing)},
        },
        "types": {"detailed": f"kind{number % 100}", "semantic": "attr", "structural": kind},
        "fullAnswer": f"The part of the thing is {answer}.",
    }


def _scene(image: int) -> tuple[str, dict[str, Any]]:
    objects = {
        str(thing): {
            "name": "thing",
            "x": 20 * thing,
            "y": 15 * thing,
            "w": 100,
            "h": 90,
            "attributes": ["red"],
            "relations": [{"name": "near", "object": str(other)} for other in range(3)],
        }
        for thing in range(OBJECTS)
    }
    return str(image), {"width": 500, "height": 375, "objects": objects}


def _id(number: int) -> str:
    return f"{number:08d}"


def _write_members(file: Any, members: Iterator[tuple[str, Any]]) -> None:
    separator = "{"
    for name, value in members:
        file.write(f"{separator}{json.dumps(name)}: {json.dumps(value)}")
        separator = ", "
    file.write("}")


def _write_list(path: Path, key: str, values: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        separator = "["
        for number, value in values:
            file.write(separator + json.dumps({"questionId": _id(number), key: value}))
            separator = ", "
        file.write("]")


def scored(folder: Path, *options: str) -> dict[str, float]:
    """Seconds, CPU seconds and MB used by the command with these files and options."""
    files = ["--questions", "questions.json", "--predictions", "predictions.json"]
    command = [sys.executable, "-m", "lavis_ext.evaluation.gqa", *files, *options]
    measured = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", measured, *command],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - start
    cpu_seconds, megabytes = map(float, done.stdout.split())
    return {
        "seconds": round(seconds, 1),
        "CPU seconds": round(cpu_seconds, 1),
        "MB": round(megabytes),
    }


def main() -> None:
    """Score with each set of options and print the times."""
    parser = argparse.ArgumentParser(description="Measure the scoring of GQA predictions.")
    parser.add_argument("folder", type=Path, help="folder of the files")
    parser.add_argument("--balanced", type=int, default=BALANCED)
    parser.add_argument("--all", type=int, default=BALANCED)
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.balanced}_of_{arguments.all}"
    if not folder.exists():
        write_files(folder, arguments.balanced, arguments.all)
    shutil.rmtree(folder / ".lavis_ext_questions", ignore_errors=True)
    choices = ["--choices", "choices.json"]
    grounding = ["--scenes", "scenes.json", "--attentions", "attentions.json"]
    metrics = {
        "consistency, first time": scored(folder, "--consistency"),
        "consistency": scored(folder, "--consistency"),
        "without consistency": scored(folder),
        "all metrics": scored(folder, "--consistency", *choices, *grounding),
        "all metrics, no intervals": scored(
            folder, "--consistency", *choices, *grounding, "--resamples", "0"
        ),
    }
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
