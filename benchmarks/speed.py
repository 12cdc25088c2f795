"""Measure training speed: the straightforward way, then each optimization added in turn.

    python -m benchmarks.speed output/speed            # `make bench`: base_esam at 384 px
    python -m benchmarks.speed output/speed --small    # `make bench SMALL=1`: model type mini

All variants train on the same synthetic data on the same device, each in separate processes, so
that peak memory is its own; each round measures all variants, so that other load on the machine
shows in the spread. The weights are random, which doesn't affect times. Writes ``metrics.json``,
``table.md`` and ``speed.svg`` to the folder after each variant. Three images of base_esam in a
batch take 13 GiB of memory. ``--small`` takes three minutes on two cores: short rounds, no
compilation, and only the ladder.

Without a GPU all cores are used; with one, bf16 and compilation, and more images per batch. The
time of an epoch of GQA's balanced questions is estimated from the FLOP rate.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import plots
from benchmarks.processes import PROJECT, command, environment
from benchmarks.straightforward import AS_MEASURED, STRAIGHTFORWARD, Ways, straightforward_loss
from lavis_ext import distributed
from lavis_ext.common.files import write_json, written_aside
from lavis_ext.common.tables import markdown
from lavis_ext.config.loader import Config
from lavis_ext.datasets.base import to_device
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.datasets.pictures import read_image
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.features.run_features import RunFeatures
from lavis_ext.models.base import total_loss
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.runners.dry_run import measure_steps
from lavis_ext.runners.flops import count_flops, count_passes
from lavis_ext.runners.freezing import freeze_all_but, train_mode, trained_patterns
from lavis_ext.runners.launch import Prepared, prepared
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.trainer import Stepper

RECIPE = "projects/pnp-vqa/train/gqa_train.yaml"
QUESTIONS_AN_IMAGE = 32
PICTURE = (500, 375)
"""Size of most of GQA's images in pixels."""
GQA_QUESTIONS, GQA_IMAGES = 943_000, 72_140
"""Size of the balanced training split."""
SAME_LOSS = 1e-5
REFERENCE, STRICTER = "straightforward", "seen_once"
REFERENCES = {"times_straightforward": REFERENCE, "times_stricter": STRICTER}
"""By key of the metrics, the variant that others are compared with."""


@dataclass(frozen=True)
class Variant:
    """A training variant.

    Attributes:
        name: key in ``metrics.json``.
        label: label in the table.
        ways: optimizations of the straightforward way; None is the library.
        images, questions: images per batch, and questions per image.
        stored: whether stored features replace images.
        options: additional options of the run.
        processes: number of processes.
    """

    name: str
    label: str
    ways: Ways | None = None
    images: int = 1
    questions: int = 16
    stored: bool = True
    options: tuple[str, ...] = ()
    processes: int = 1


def ladder(images: int) -> list[Variant]:
    """The straightforward way, then each optimization added to those before it."""
    fast = Variant("stored", "features stored", images=images)
    live = replace(fast, stored=False)
    bf16 = ("run.amp=true",)
    single = {"images": 1, "questions": 1, "stored": False}
    return [
        Variant(REFERENCE, "straightforward", STRAIGHTFORWARD, **single),  # type: ignore[arg-type]
        # Beside the ladder: the effect of encoding the image once for both pairs.
        Variant(
            STRICTER,
            "(straightforward, one encoding for both pairs)",
            Ways(seen_once=True),
            **single,  # type: ignore[arg-type]
        ),
        Variant(
            "fused",
            "+ fused attention, streams in one pass",
            Ways(fused_attention=True),
            **single,  # type: ignore[arg-type]
        ),
        replace(live, name="pairs", label="+ both pairs in one pass", images=1, questions=1),
        replace(live, name="live_4", label="+ by image, 4 questions each", questions=4),
        replace(live, name="live", label="+ by image, 16 questions each"),
        replace(fast, label="+ features stored"),
        replace(fast, name="bf16", label="+ bf16", options=bf16),
        replace(
            fast, name="compiled", label="+ torch.compile", options=(*bf16, "run.compile=true")
        ),
    ]


def sweeps(images: int) -> list[Variant]:
    """Variants of questions per image, images per batch, dropout on attention, and processes.

    All with stored features, fp32.
    """
    base = Variant("", "", images=images)
    return [
        *(
            replace(base, name=f"questions_{count}", label=f"{count} questions", questions=count)
            for count in (1, 2, 4, 8, 32)
        ),
        *(
            replace(base, name=f"images_{count}", label=f"{count} images", images=count)
            for count in (2 * images, 3 * images)
        ),
        replace(
            base,
            name="attention_dropout",
            label="dropout on attention",
            options=(
                "model.fusion.attention_dropout=0.1",
                "model.objectives.answer.attention_dropout=0.1",
            ),
        ),
        replace(base, name="processes_2", label="2 processes", processes=2),
    ]


def make_data(folder: Path, images: int) -> Path:
    """A mini-GQA with many questions per training image, and pictures of GQA's size."""
    root = folder / f"data_{images}"
    if root.exists():
        return root
    aside = folder / f".{root.name}"
    make_mini_gqa(aside, images=images)
    questions = aside / "questions"
    every = json.loads((questions / "train_all_questions.json").read_text(encoding="utf-8"))
    taken: dict[str, int] = {}
    chosen = {}
    for question_id, record in every.items():
        count = taken[record["imageId"]] = taken.get(record["imageId"], 0) + 1
        if count <= QUESTIONS_AN_IMAGE:
            chosen[question_id] = record
    few = {image for image, count in taken.items() if count < QUESTIONS_AN_IMAGE}
    chosen = {key: value for key, value in chosen.items() if value["imageId"] not in few}
    write_json(questions / "train_balanced_questions.json", chosen)
    for path in (aside / "images").iterdir():
        read_image(path).resize(PICTURE, Image.Resampling.BICUBIC).save(path, quality=90)
    aside.rename(root)
    return root


def make_config(given: Namespace, variant: Variant) -> Config:
    """Config of a variant's run."""
    root = given.out / ("small" if given.small else "base")
    options = [
        f"datasets.gqa_fusion.root={make_data(given.out, given.images)}",
        "datasets.gqa_fusion.mismatched.hard=false",  # mini-GQA has few questions of a form
        "run.amp=false",
        f"run.examples_per_image={variant.questions}",
        f"run.num_workers={1 if given.device == 'cpu' else 8}",
        f"run.device={given.device}",
    ]
    if given.small:
        options.append("model.model_type=mini")
    else:
        options += ["model.blip.weights=null", "model.efficient_sam.weights=null"]
        options.append("model.blip.tokenizer=packaged:miniature/vocabulary.txt")
    if variant.ways is None:
        options.append(f"run.batch_size_train={variant.images * variant.questions}")
        options.append("run.accum_grad_iters=1")
    else:
        options += ["run.task=straightforward", "run.batch_size_train=1"]
        options.append(f"run.accum_grad_iters={given.questions_a_step}")
    if variant.stored:
        options.append(f"run.features.root={root / 'features'}")
        options += ["run.features.make=true", "run.features.batch_size=8"]
    options += [*AS_MEASURED, *variant.options]
    return Config(Namespace(cfg_path=str(PROJECT / RECIPE), options=options))


def unfuse(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer update parameters one by one."""
    for group in optimizer.param_groups:
        group["fused"] = group["foreach"] = False
    # Only the fused kernel supports skipped steps.
    optimizer.register_step_pre_hook(lambda each, *_: setattr(each, "found_inf", None))


def measure(given: Namespace, variant: Variant) -> dict[str, Any]:
    """Measure a variant in this process and its peers."""
    cfg = make_config(given, variant)
    with prepared(cfg, ["train"]) as parts:
        if cfg.run.features is not None:
            features = RunFeatures(cfg.run.features, parts.datasets, parts.model)
            features.use(parts.device, cfg.run.num_workers)
        batches = TrainingPlan.of(cfg.run, parts.datasets).batches
        samples: QuestionBatch = parts.datasets["train"].__getitems__(next(iter(batches)))
        flops = count(cfg, parts, variant, samples)
        parts.model.to(parts.device)
        stepper = Stepper.for_timing(parts.task, parts.model, cfg.run, parts.device)
        if variant.ways is not None:
            parts.task.ways = variant.ways
            unfuse(stepper.optimizer)
        found = measure_steps(
            cfg.run,
            stepper,
            parts.datasets["train"],
            batches,
            parts.device,
            budget=given.seconds,
            at_least=given.steps if variant.ways is None or given.small else 2,
        )
        metrics = {
            "rates": found.rates,
            "waiting": found.waiting_share,
            "peak_bytes": found.peak_bytes,
            **flops,
        }
        return metrics if distributed.is_main_process() else {}


def make_features(given: Namespace) -> float:
    """Make the stores first, to keep their memory out of the variants' peaks; returns seconds."""
    cfg = make_config(given, Variant("", ""))
    assert cfg.run.features is not None
    with prepared(cfg, ["train"]) as parts:
        started = time.perf_counter()
        features = RunFeatures(cfg.run.features, parts.datasets, parts.model)
        features.use(parts.device, cfg.run.num_workers)
        return time.perf_counter() - started


def count(cfg: Config, parts: Prepared, variant: Variant, samples: QuestionBatch) -> dict[str, Any]:
    """FLOPs of a question with its share of the image; for the library, also separately."""
    ways = variant.ways
    if ways is not None and not ways.fused_attention:
        # Transformers' forward passes read mask values, which ``meta`` doesn't have.
        train_mode(parts.model)
        passes = count_passes(lambda each: straightforward_loss(parts.model, each, ways), samples)
        parts.model.zero_grad(set_to_none=True)
        return {"flops": passes.both / len(samples["text_input"])}
    on_host = parts.datasets["train"].on_host
    with torch.device("meta"):
        model: Any = parts.task.build_model(cfg, load_weights=False)
    freeze_all_but(model, trained_patterns(model, cfg.run.trainable))
    train_mode(model)
    if ways is not None:
        samples = to_device(samples, torch.device("meta"), on_host)
        passes = count_passes(lambda each: straightforward_loss(model, each, ways), samples)
        return {"flops": passes.both / len(samples["text_input"])}
    found = count_flops(model, samples, on_host)
    return {
        "flops": found.an_example,
        "image_flops": found.image.both,
        "question_flops": found.example.both,
    }


def matrix_multiply_peak(given: Namespace) -> dict[str, float]:
    """FLOPs per second of large square matrix products, best of several, by dtype."""
    device = torch.device(given.device)
    side = 8192 if device.type == "cuda" else 512 if given.small else 4096
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        best = float("inf")
        for _ in range(6):
            started = time.perf_counter()
            left @ right
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - started)
        peaks[name] = 2 * side**3 / best
    return peaks


def largest_difference(given: Namespace) -> float:
    """Largest difference of the straightforward and the library's losses, fp32."""
    cfg = make_config(
        replace_namespace(given, small=True), Variant("", "", None, 2, 3, stored=False)
    )
    cfg.model.fusion.dropout = 0.0
    for objective in cfg.model.objectives.values():
        if hasattr(objective, "dropout"):
            objective.dropout = 0.0
    with prepared(cfg, ["train"]) as parts:
        model: PnpVqaFusion = parts.model
        train_mode(model)
        with torch.no_grad():
            assert model.fusion.gate is not None
            model.fusion.gate.fill_(0.5)  # initially closed, which would hide the fusion
            batches = TrainingPlan.of(cfg.run, parts.datasets).batches
            samples = parts.datasets["train"].__getitems__(next(iter(batches)))
            fast = total_loss(model(samples))
            ways = (STRAIGHTFORWARD, Ways(fused_attention=True), Ways(seen_once=True))
            plain = [straightforward_loss(model, samples, each) for each in ways]
    return max(abs(float(loss - fast)) for loss in plain) / len(samples["text_input"])


def replace_namespace(given: Namespace, **changes: Any) -> Namespace:
    """Copy a namespace with other values."""
    return Namespace(**{**vars(given), **changes})


def in_child(
    given: Namespace, arguments: Sequence[str], *, processes: int = 1, threads: int | None = None
) -> Any:
    """JSON printed by ``--only`` in a separate process, or in several with torchrun."""
    done = subprocess.run(
        command(["-m", "benchmarks.speed", *arguments], processes),
        cwd=PROJECT,
        env=environment(threads or max(1, given.threads // processes)),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(
    runs: dict[str, list[dict[str, Any]]], variants: Sequence[Variant], peaks: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Medians, spreads, and ratios to the straightforward way over each variant's rounds."""
    found: dict[str, dict[str, Any]] = {}
    for variant in variants:
        rounds = runs[variant.name]
        rates = [rate for each in rounds for rate in each["rates"]]
        rate, flops = statistics.median(rates), rounds[0]["flops"]
        peak = peaks["bf16" if "run.amp=true" in variant.options else "fp32"]
        found[variant.name] = {
            "label": variant.label,
            "examples_per_second": rate,
            "slowest": min(rates),
            "fastest": max(rates),
            "steps": len(rates),
            "flops_a_question": flops,
            "share_of_peak": rate * flops / peak,
            "peak_gib": max(each["peak_bytes"] for each in rounds) / 2**30,
            "waiting": statistics.median(each["waiting"] for each in rounds),
            **{
                key: rounds[0][key] for key in ("image_flops", "question_flops") if key in rounds[0]
            },
            "variant": asdict(variant),
        }
        epoch = GQA_QUESTIONS * flops
        if "image_flops" in rounds[0]:  # an image is paid once for its questions, here 13
            epoch = GQA_IMAGES * rounds[0]["image_flops"]
            epoch += GQA_QUESTIONS * rounds[0]["question_flops"]
        found[variant.name]["gqa_epoch_hours"] = epoch / (rate * flops) / 3600
        for key, name in REFERENCES.items():
            if name in runs:
                found[variant.name][key] = ratios(rounds, runs[name])
    return found


def ratios(
    rounds: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> tuple[float, float, float]:
    """Smallest, median and largest ratio of a round's median rate to the reference's."""
    each = [
        statistics.median(ours["rates"]) / statistics.median(theirs["rates"])
        for ours, theirs in zip(rounds, reference, strict=True)
    ]
    return min(each), statistics.median(each), max(each)


def with_spread(ratio: Sequence[float] | None) -> str:
    """A ratio's median, with its smallest and largest if they differ."""
    if ratio is None:
        return ""
    smallest, median, largest = ratio
    spread = "" if smallest == largest else f" ({smallest:.3g} to {largest:.3g})"
    return f"{median:.3g}{spread}"


def table(found: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    """The ladder as a Markdown table."""
    header = (
        "",
        "questions/s",
        "slowest to fastest step",
        "times",
        "times the stricter one",
        "GFLOP a question",
        "share of the matmul peak",
        "memory, GiB",
        "waiting for data",
        "an epoch of GQA, h",
    )
    rows = []
    for name in names:
        each = found[name]
        rows.append(
            (
                each["label"],
                f"{each['examples_per_second']:.3g}",
                f"{each['slowest']:.3g} to {each['fastest']:.3g}",
                *(with_spread(each.get(key)) for key in REFERENCES),
                f"{each['flops_a_question'] / 1e9:.3g}",
                f"{100 * each['share_of_peak']:.0f} %",
                f"{each['peak_gib']:.1f}",
                f"{100 * each['waiting']:.1f} %",
                f"{each['gqa_epoch_hours']:,.0f}",
            )
        )
    return markdown(rows, header) + "\n"


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of data, features and metrics")
    parser.add_argument("--small", action="store_true", help="model type mini")
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds over all variants (%(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="duration of a variant's steps per round; 15, or 2 with --small",
    )
    parser.add_argument(
        "--steps", type=int, help="minimum steps; 200 on a GPU, 8 with --small, else 3"
    )
    parser.add_argument(
        "--questions-a-step",
        type=int,
        default=2,
        help="questions that the straightforward way accumulates (%(default)s)",
    )
    parser.add_argument("--images", type=int, default=40, help="images of the data (%(default)s)")
    parser.add_argument("--variants", nargs="+", help="names of the only variants to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", help="measure one thing in this process and print it")
    given = parser.parse_args(arguments)
    given.out = given.out.resolve()
    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if given.seconds is None:
        given.seconds = 2.0 if given.small else 15.0
    given.steps = given.steps or (200 if given.device == "cuda" else 8 if given.small else 3)
    return given


def main() -> None:
    """Measure all variants and write the results."""
    given = parse_arguments()
    images = 8 if given.device == "cuda" else 1
    steps = ladder(images)
    variants = {variant.name: variant for variant in (*steps[:-1], *sweeps(images), steps[-1])}
    if given.device == "cuda":
        del variants["processes_2"]
    if given.only == "peak":
        print(json.dumps(matrix_multiply_peak(given)))
    elif given.only == "features":
        print(json.dumps(make_features(given)))
    elif given.only == "difference":
        print(json.dumps(largest_difference(given)))
    elif given.only:
        if metrics := measure(given, variants[given.only]):
            print(json.dumps(metrics), flush=True)
    else:
        every = NAMES_OF_LADDER[:-1] if given.small else variants
        report(given, [v for v in variants.values() if v.name in (given.variants or every)])


def report(given: Namespace, variants: list[Variant]) -> None:
    """Measure the variants in rounds; write metrics, table and plot."""
    given.out.mkdir(parents=True, exist_ok=True)
    make_data(given.out, given.images)
    arguments = sys.argv[1:]
    difference = in_child(given, [*arguments, "--only", "difference"], threads=1)
    if difference > SAME_LOSS:
        raise SystemExit(f"the straightforward loss differs from the library's by {difference:.2g}")
    if any(variant.stored for variant in variants):
        in_child(given, [*arguments, "--only", "features"])
    runs: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    peaks: dict[str, float] = {}
    for turn in range(given.rounds):
        for dtype, peak in in_child(given, [*arguments, "--only", "peak"]).items():
            peaks[dtype] = max(peak, peaks.get(dtype, 0.0))
        for variant in variants:
            if turn and variant.name not in NAMES_OF_LADDER:
                continue
            only = [*arguments, "--only", variant.name]
            runs[variant.name].append(in_child(given, only, processes=variant.processes))
            rate = statistics.median(runs[variant.name][-1]["rates"])
            print(f"round {turn + 1}: {variant.name} {rate:.3g} questions/s", flush=True)
            text = write(given, runs, variants, peaks, difference)
    print(text)


def write(
    given: Namespace,
    runs: dict[str, list[dict[str, Any]]],
    variants: Sequence[Variant],
    peaks: dict[str, float],
    difference: float,
) -> str:
    """Write metrics, table and plot of the variants measured so far; returns the table."""
    measured = {v.name: v for v in variants if runs[v.name]}
    found = summary(runs, list(measured.values()), peaks)
    names = [name for name in NAMES_OF_LADDER if name in measured]
    metrics = {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "threads": given.threads,
        "torch": torch.__version__,
        "model": "mini" if given.small else "base_esam",
        "matmul_peak_flops": peaks,
        "largest_difference_of_losses": difference,
        "ladder": names,
        "variants": found,
    }
    write_json(given.out / "metrics.json", metrics)
    text = table(found, names)
    with written_aside(given.out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    plots.draw_speed(metrics, given.out / "speed.svg")
    return text


NAMES_OF_LADDER = [variant.name for variant in ladder(1)]

if __name__ == "__main__":
    main()
