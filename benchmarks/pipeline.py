"""Measure answering: LAVIS's way as published, with its key-value cache mended, and the library's.

    python -m benchmarks.pipeline output/pipeline            # base sizes, 384 px
    python -m benchmarks.pipeline output/pipeline --small    # the miniature, trained

Two questions about one image and about two are answered from 20 captions of 20 patches each, by
models with the same weights: LAVIS's pipeline (one stream, raw heat), and with the fusion, without
and with masks. One thread, CPU seconds, all ways in turn in every round, so that other load on the
machine shows in the spread; ratios are medians over rounds. LAVIS's way runs in float32, the
library also under bfloat16 autocast, as with ``run.amp``, and in int8, as with
``model.quantization``. The base sizes have random weights and take 14 GiB of memory and minutes a
round. Answers and captions of all ways are compared.

Writes ``metrics.json`` and ``table.md`` to the folder, and prints the tables.
"""

import argparse
import copy
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks import straightforward_answering
from benchmarks.straightforward_answering import AS_PUBLISHED, MENDED
from lavis_ext.common.files import write_json, written_aside
from lavis_ext.common.packed_linears import int8_supported, quantize_linears
from lavis_ext.common.tables import markdown
from lavis_ext.config.typed import typed
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion

QUESTIONS = ("what color is the large circle on the left?", "is there a red star in the picture?")
IMAGES = {"one image": (0, 0), "two images": (0, 1)}
"""The image of each question."""
LAVIS, FUSED, MASKED = "LAVIS's pipeline", "with fusion", "with fusion and masks"
PUBLISHED, WITH_CACHE = "LAVIS as published", "LAVIS with its cache"
OURS, NARROW, INT8 = "lavis_ext", "lavis_ext, bf16", "lavis_ext, int8"
LIBRARYS = (OURS, NARROW, INT8)
"""The library's ways; of the two last those that the CPU has instructions for."""
WAYS = {PUBLISHED: AS_PUBLISHED, WITH_CACHE: MENDED}
STAGES = ("encoders", "fusion", "matching and masks", "captioner's ViT", "captions", "reading")


@dataclass
class Timed:
    """CPU seconds of one way, and what it answered.

    Attributes:
        seconds: of each round.
        stages: of each round, seconds by stage; the library's only.
        answers, captions: of the last round.
    """

    seconds: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)


def make_models(*, small: bool, captions: int) -> dict[str, PnpVqaFusion]:
    """Models by pipeline: base_esam with random weights, or the trained miniature.

    They share the parts that they have in common.
    """
    masked, lavis = (
        make_model(pipeline, small=small, captions=captions) for pipeline in (MASKED, LAVIS)
    )
    # Not the modules, since the model keeps others that share theirs.
    for part in ("blip", "captioner", "reader"):
        own, others = (getattr(model, part).parameters() for model in (lavis, masked))
        for parameter, other in zip(own, others, strict=True):
            parameter.data = other.data
    fused = copy.copy(masked)
    fused.segmenting = []
    return {LAVIS: lavis, FUSED: fused, MASKED: masked}


def make_model(pipeline: str, *, small: bool, captions: int) -> PnpVqaFusion:
    """The model of one pipeline, from its own section of the config."""
    section = PnpVqaFusion.default_section(
        OmegaConf.create({"model_type": "mini" if small else "base_esam"})
    )
    section.captioner.sampling = {
        "num_captions": captions,
        "patches": {"num_patches": 20},
        **({"max_length": 24, "min_length": 0} if small else {}),
    }
    if pipeline == LAVIS:
        section.streams = {"grid": section.streams.grid}
        section.fusion = {"name": "first_only", "gate": False}
        section.refined_heat = {"weight": 0.0}
    if not small:
        tokenizer = "packaged:miniature/vocabulary.txt"
        section.streams.grid.tokenizer = section.captioner.tokenizer = tokenizer
        section.reader.tokenizer = "packaged:miniature/reader_tokenizer.json"
    torch.manual_seed(0)
    config = typed(PnpVqaFusionConfig, section, "model")
    return PnpVqaFusion(config, load_weights=small, answering=True).eval()


def make_samples(model: PnpVqaFusion, images: Sequence[int]) -> QuestionBatch:
    """Two questions and random pictures."""
    generator = torch.Generator().manual_seed(0)
    pictures = {}
    for name, encoder in model.streams.items():
        side = encoder.image_size
        drawn = torch.randint(0, 256, (max(images) + 1, 3, side, side), generator=generator)
        pictures[name] = drawn.byte()
    return {
        "images": pictures,
        "image_index": torch.tensor(images),
        "text_input": list(QUESTIONS),
        "ids": ["0", "1"],
    }


@contextmanager
def timed_stages(model: PnpVqaFusion) -> Iterator[dict[str, float]]:
    """Context manager that adds up CPU seconds by stage of the model's ``answer``."""
    spent = dict.fromkeys(STAGES, 0.0)
    inner = [0.0]

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = time.process_time()
            result = function(*args, **kwargs)
            seconds = time.process_time() - start
            spent[stage] += seconds - inner.pop()
            inner[-1] += seconds
            return result

        return call

    places: list[tuple[Any, str, str]] = [
        (model, "encode", "encoders"),
        (model, "_fused", "fusion"),
        (model, "_locate", "matching and masks"),
        (model, "_part_tokens", "captioner's ViT"),
        (model.captioner, "caption", "captions"),
        (model.reader, "read", "reading"),
    ]
    for owner, name, stage in places:
        owner.__dict__[name] = timed(stage, getattr(owner, name))
    try:
        yield spent
    finally:
        for owner, name, _ in places:
            del owner.__dict__[name]


@contextmanager
def int8(model: PnpVqaFusion, *, enabled: bool) -> Iterator[None]:
    """Context manager: the model as built with ``quantization: int8``, if ``enabled``."""
    before = [(each, type(each)) for each in model.modules()]
    if enabled:
        quantize_linears(model)
    try:
        yield
    finally:
        for module, kind in before:
            module.__class__ = kind


def run_once(model: PnpVqaFusion, samples: QuestionBatch, way: str, into: Timed) -> None:
    """Answer once in a way, and add the times to ``into``."""
    if way in WAYS:
        start = time.process_time()
        found = straightforward_answering.answer(model, samples, WAYS[way])
        into.seconds.append(time.process_time() - start)
        into.answers, into.captions = found.answers, found.captions
        return
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=way == NARROW)
    with narrow, int8(model, enabled=way == INT8), timed_stages(model) as stages:
        start = time.process_time()
        output = model.answer(samples)
        into.seconds.append(time.process_time() - start)
    into.stages.append(stages)
    into.answers, into.captions = output.answers, output.captions


def measure(given: Namespace) -> dict[str, dict[str, dict[str, Timed]]]:
    """Times by images, pipeline and way."""
    models = make_models(small=given.small, captions=given.captions)
    found: dict[str, dict[str, dict[str, Timed]]] = {
        case: {
            pipeline: {way: Timed() for way in (*WAYS, *LIBRARYS) if runs(pipeline, way)}
            for pipeline in models
        }
        for case in IMAGES
    }
    for model in models.values():  # first calls set up kernels
        for way in filter(computed_here, LIBRARYS):
            run_once(model, make_samples(model, (0, 0)), way, Timed())
    for number in range(given.rounds):
        for case, images in IMAGES.items():
            for pipeline, model in models.items():
                samples = make_samples(model, images)
                for way, timed in found[case][pipeline].items():
                    run_once(model, samples, way, timed)
        print(f"round {number + 1} of {given.rounds} done", flush=True)
    return found


def runs(pipeline: str, way: str) -> bool:
    """Whether ``way`` is measured: with a fusion, as published would only take time."""
    return (pipeline == LAVIS or way != PUBLISHED) and computed_here(way)


def computed_here(way: str) -> bool:
    """Whether the CPU has instructions for a way's type; emulation would say nothing of others."""
    if way == NARROW:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return way != INT8 or int8_supported()


def ratio(slower: Timed, faster: Timed) -> str:
    """Median ratio of seconds over rounds, and the smallest and largest."""
    ratios = [a / b for a, b in zip(slower.seconds, faster.seconds, strict=True)]
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"


def equal(found: Timed, reference: Timed) -> str:
    """How many answers and captions equal the reference's."""
    answers = [a == b for a, b in zip(found.answers, reference.answers, strict=True)]
    captions = [
        text in theirs
        for texts, theirs in zip(found.captions, reference.captions, strict=True)
        for text in texts
    ]
    return f"{sum(answers)} of {len(answers)}; {sum(captions)} of {len(captions)}"


def tables(found: dict[str, dict[str, dict[str, Timed]]]) -> str:
    """Totals with ratios, then the library's stages, in Markdown."""
    totals, stages = [], []
    for case, pipelines in found.items():
        for pipeline, ways in pipelines.items():
            for way, timed in ways.items():
                row = [case, pipeline, way, f"{statistics.median(timed.seconds):.2f}"]
                if way in LIBRARYS:
                    theirs = pipelines[LAVIS]
                    row += [ratio(theirs[each], timed) for each in WAYS]
                    row += [ratio(ways[WITH_CACHE], timed), equal(timed, ways[WITH_CACHE])]
                    medians = {
                        stage: statistics.median(each[stage] for each in timed.stages)
                        for stage in STAGES
                    }
                    stages.append(
                        [case, pipeline, way, *(f"{medians[stage]:.2f}" for stage in STAGES)]
                    )
                totals.append(row + [""] * (8 - len(row)))
    return "\n\n".join(
        (
            markdown(
                totals,
                (
                    "",
                    "",
                    "",
                    "CPU seconds",
                    "times as published",
                    "times with its cache",
                    "times LAVIS's way with the same parts",
                    "equal answers; captions",
                ),
            ),
            markdown(stages, ("", "", "", *STAGES)),
        )
    )


def cpu_model() -> str:
    """The CPU's model, as Linux names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true", help="measure the miniature")
    parser.add_argument("--rounds", type=int, default=3, help="measurements (%(default)s)")
    parser.add_argument(
        "--captions", type=int, default=20, help="captions of a question (%(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write metrics and tables."""
    given = parse_arguments(arguments)
    torch.set_num_threads(1)
    found = measure(given)
    text = tables(found)
    given.out.mkdir(parents=True, exist_ok=True)
    metrics = {
        case: {
            pipeline: {way: vars(timed) for way, timed in ways.items()}
            for pipeline, ways in pipelines.items()
        }
        for case, pipelines in found.items()
    }
    write_json(given.out / "metrics.json", {"cpu": cpu_model(), "times": metrics})
    with written_aside(given.out / "table.md") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(f"{cpu_model()}, one thread\n\n{text}")


if __name__ == "__main__":
    main()
