"""What scale costs: two processes, images in archives, an evaluation that is interrupted.

    python -m benchmarks.scale output/speed            # by `make bench`, after benchmarks.speed
    python -m benchmarks.scale output/speed --small    # `make bench SMALL=1`: model type mini

Trains as ``benchmarks.speed`` does, with stored features, by one process with all cores and by two
that share them; reads images as ``benchmarks.image_files`` does; answers questions with the
miniature's pipeline, undisturbed and stopped after half of them. Writes ``scale.json`` and
``scale.md`` to the folder.
"""

import statistics
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks import image_files, speed
from benchmarks.processes import PROJECT
from lavis_ext.common.files import write_json, written_aside
from lavis_ext.common.tables import markdown
from lavis_ext.config.loader import Config
from lavis_ext.runners.launch import started
from lavis_ext.runners.saved_steps import SavedSteps

EVALUATION = "projects/pnp-vqa/eval/mini_eval.yaml"
WEIGHTS = "packaged:miniature/fusion_encoder.safetensors"
QUESTIONS_A_BATCH = 8
Row = tuple[str, str, str, str]


class Stopped(Exception):
    """Stands for a kill."""


def training(given: Namespace) -> list[Row]:
    """Questions a second of one process and of two; none on a GPU, which they don't share."""
    if given.device == "cuda":
        return []
    arguments = [str(given.out), *(["--small"] if given.small else []), "--device", given.device]
    speed.in_child(given, [*arguments, "--only", "features"])
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.rounds):  # by turns, as other programs use the machine too
        for variant, processes in (("stored", 1), ("processes_2", 2)):
            found = speed.in_child(given, [*arguments, "--only", variant], processes=processes)
            rates[processes] += found["rates"]
    one, two = map(statistics.median, rates.values())
    cores = f"{given.threads} cores"
    return [
        (f"training, 1 process on {cores}", f"{one:.3g} questions/s", "", ""),
        (
            f"training, 2 processes on {cores}",
            f"{two:.3g} questions/s",
            "1 process",
            ratio(two, one),
        ),
    ]


def images(given: Namespace) -> list[Row]:
    """Images a second from each place, and the time to open an archive as large as GQA's."""
    found = image_files.measured(given.out / "images", 100 if given.small else 400)
    folder = found["folder"]["images_a_second"]
    rows = [
        (
            f"images: {how}",
            f"{each['images_a_second']:.3g} images/s",
            "folder",
            ratio(each["images_a_second"], folder),
        )
        for how, each in found.items()
    ]
    opened = image_files.opening(given.out / "images", 10_000 if given.small else image_files.GQA)
    return [
        *rows,
        (
            f"opening a zip of {opened['images']:,} images",
            f"{opened['cpu_seconds']:.2f} CPU s",
            "",
            f"{opened['mib']:.0f} MiB of memory",
        ),
    ]


def evaluation(given: Namespace) -> list[Row]:
    """Questions a second of an evaluation, and what an interruption costs."""
    data = speed.make_data(given.out, given.images)
    questions = 48 if given.small else 200
    with TemporaryDirectory(dir=given.out) as folder:

        def evaluated(name: str, most: int | None = None) -> tuple[float, float]:
            options = [*evaluation_options(data, questions), f"run.output_dir={folder}"]
            options.append(f"datasets.gqa_fusion.mini_gqa.images={given.images}")
            return seconds_of(
                Config(
                    Namespace(
                        cfg_path=str(PROJECT / EVALUATION),
                        options=[*options, f"run.device={given.device}", f"run.name={name}"],
                    )
                ),
                most,
            )

        evaluated("warm-up", 1)
        whole, saving = evaluated("whole")
        first, _ = evaluated("cut", questions // QUESTIONS_A_BATCH // 2)
        second, _ = evaluated("cut")
    what = f"answering {questions} questions"
    return [
        (
            f"{what}, results saved",
            f"{questions / whole:.3g} questions/s",
            "unsaved",
            ratio(whole - saving, whole),
        ),
        (
            f"{what}, stopped after half",
            f"{questions / (first + second):.3g} questions/s",
            "undisturbed",
            ratio(whole, first + second),
        ),
    ]


def evaluation_options(data: Path, questions: int) -> list[str]:
    """Options of an evaluation that continues if it was stopped."""
    return [
        f"datasets.gqa_fusion.root={data}",
        f"datasets.gqa_fusion.mini_gqa.root={data}",
        f"model.fusion_weights={WEIGHTS}",
        f"run.small_test_size={questions}",
        "run.sample_by=examples",
        f"run.batch_size_eval={QUESTIONS_A_BATCH}",
        "run.num_workers=0",
        "run.report=false",
        "run.resume=auto",
        "task.resamples=0",
    ]


def seconds_of(cfg: Config, most: int | None, split: str = "testdev") -> tuple[float, float]:
    """Seconds of an evaluation that stops after ``most`` batches, and those of saving results."""
    add, saving = SavedSteps.add, []

    def timed(self: SavedSteps, *arguments: Any) -> None:
        begun = time.perf_counter()
        add(self, *arguments)
        saving.append(time.perf_counter() - begun)
        if len(saving) == most:
            raise Stopped

    with (
        patch.object(SavedSteps, "add", timed),
        suppress(Stopped),
        started(cfg, [split]) as runner,
    ):
        begun = time.perf_counter()
        try:
            runner.evaluate()
        finally:
            seconds = time.perf_counter() - begun
    return seconds, sum(saving)


def ratio(one: float, other: float) -> str:
    """``one`` as a multiple of ``other``."""
    return f"{one / other:.2f}"


def main() -> None:
    """Measure all and write the table."""
    given = speed.parse_arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = [*training(given), *images(given), *evaluation(given)]
    text = markdown(rows, ("", "rate", "beside", "ratio")) + "\n"
    write_json(given.out / "scale.json", rows)
    with written_aside(given.out / "scale.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
