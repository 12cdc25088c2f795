"""What tokens know: linear probes of every attribute of mini-GQA's objects, by stream.

    python -m benchmarks.probes output/probes --data data/mini_gqa --model-type mini
    python -m benchmarks.probes output/fine --data data/mini_gqa_fine --model-type mini_fine \\
        --weights RUN/fusion_encoder_best.safetensors

A probe is ridge regression onto one column per value, in closed form (Alain and Bengio, 2017, probe
likewise with linear classifiers), from a stream's tokens at an object's place: the five points of
its box that are its center and half-way to its edges, interpolated between tokens. Of a finer
stream, also from all of its patches in the place of the first stream's grid that has the object's
center, as fusions by windows read them: objects lie anywhere in it, and across its edges. Images of
the training split are divided into images to fit, to choose the penalty, and to test; each seed
divides them anew. The folder gets ``metrics.json`` and ``table.md``.

Below the table stands each stream's effective rank (Roy and Vetterli, EUSIPCO 2007), the number of
directions over which its tokens' variance is spread. What lies in directions of little variance is
slow to be learned by gradient descent.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lavis_ext.ask.pipeline import model_section
from lavis_ext.common.errors import UserError, command
from lavis_ext.common.files import parse_json
from lavis_ext.common.tables import markdown
from lavis_ext.datasets.gqa.scene_graphs import SceneGraph, read_scene_graphs
from lavis_ext.datasets.mini_gqa.vocabulary import SHAPES, WORLDS, World
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.encoders.base import Tokens
from lavis_ext.encoders.streams import build_streams
from lavis_ext.fusion.stream_adapter import Size, in_windows, resize_grid, window_of
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.pretraining.descriptions import value_of
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor

POINTS = ((0.5, 0.5), (0.25, 0.5), (0.75, 0.5), (0.5, 0.25), (0.5, 0.75))
"""Places (x, y) in an object's box."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties, per example, of standardized features."""
FITTED, CHOSEN = 0.6, 0.75
"""Shares of the images up to which they are fitted, and used to choose the penalty."""

RANKED = 8
"""Batches of images whose tokens the effective rank is of."""

Features = npt.NDArray[np.float32]
Metrics = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Probed:
    """Features of N objects.

    Attributes:
        images: int [N], the image of each object.
        values: value of each attribute type of each object, [N] each; None where it has none.
        features: float32 [N, D] by the name of the tokens.
        ranks: effective rank and width of each stream's tokens.
    """

    images: npt.NDArray[np.int64]
    values: dict[str, list[str | None]]
    features: dict[str, Features]
    ranks: dict[str, tuple[float, int]] = field(default_factory=dict)


def at_objects(tokens: Tokens, graphs: Sequence[SceneGraph]) -> Tensor:
    """Tokens of B images at their N objects' places, float [N, len(POINTS) * D], image by image."""
    rows, columns = tokens.grid
    maps = tokens.values[:, tokens.prefix :].transpose(1, 2).unflatten(2, (rows, columns))
    found = []
    for each, graph in zip(maps, graphs, strict=True):
        size = torch.tensor([graph.width, graph.height])
        boxes = torch.tensor([item.box for item in graph.objects])
        places = boxes[:, None, :2] + torch.tensor(POINTS) * boxes[:, None, 2:]
        sampled = F.grid_sample(
            each[None], (2 * places / size - 1)[None], padding_mode="border", align_corners=False
        )
        found.append(sampled[0].permute(1, 2, 0).flatten(1))
    return torch.cat(found)


def in_their_windows(tokens: Tokens, grid: Size, graphs: Sequence[SceneGraph]) -> Tensor:
    """Patches of B images in the windows of ``grid`` that have N objects' centers, [N, r*s*D]."""
    patches = tokens.values[:, tokens.prefix :]
    windows = in_windows(patches, tokens.grid, grid, window_of(grid, tokens.grid)).flatten(2)
    found = []
    for each, graph in zip(windows, graphs, strict=True):
        for item in graph.objects:
            x, y, width, height = item.box
            row = int((y + height / 2) / graph.height * grid[0])
            column = int((x + width / 2) / graph.width * grid[1])
            found.append(each[min(row, grid[0] - 1) * grid[1] + min(column, grid[1] - 1)])
    return torch.stack(found)


def effective_rank(tokens: Tensor) -> float:
    """Exponential of the entropy of the shares of variance of tokens [N, D]."""
    shares = torch.linalg.eigvalsh(torch.cov(tokens.double().T)).clamp(min=0)
    shares = shares / shares.sum()
    return float(torch.special.entr(shares).sum().exp())


class Streams:
    """Encoders of a model type, and fusions with trained weights on them.

    Args:
        model_type: type of ``pnp_vqa_fusion``.
        weights: fusion weights by name.
        options: ``model.KEY=VALUE``.
    """

    def __init__(self, model_type: str, weights: Mapping[str, str], options: Sequence[str]) -> None:
        section = model_section(None, model_type, options)
        self.encoders = build_streams(section.streams, section.streams, "model.streams")
        self.fusions: dict[str, PnpVqaFusion] = {
            name: PnpVqaFusion.from_config(model_section(path, model_type, options)).eval()
            for name, path in weights.items()
        }
        sizes = {name: encoder.image_size for name, encoder in self.encoders.items()}
        self._process = StreamImagesProcessor(StreamImagesConfig(sizes=sizes))
        for encoder in self.encoders.values():
            encoder.eval()

    @torch.inference_mode()
    def tokens(self, folder: ImageFolder, image_ids: Sequence[str]) -> dict[str, Tokens]:
        """Tokens of images: of each stream, of others in the first one's layout, and fused."""
        pictures = [self._process(folder.read(image_id)) for image_id in image_ids]
        images = {name: torch.stack([each[name] for each in pictures]) for name in self.encoders}
        found = {name: encoder(images[name]) for name, encoder in self.encoders.items()}
        first, *others = list(found)
        for name in others:
            values = found[name].values[:, found[name].prefix :]
            resized = resize_grid(values, found[name].grid, found[first].grid)
            found[f"{name}, resized"] = Tokens(resized, found[first].grid, 0)
        for name, model in self.fusions.items():
            own = {stream: model.streams[stream](images[stream]) for stream in model.streams}
            fused = model.fusion(own)
            found[f"fused by {name}"] = Tokens(fused, found[first].grid, found[first].prefix)
        return found


def read_features(data: Path, streams: Streams, world: World, images: int) -> Probed:
    """Features and attributes of the objects of ``images`` images of the training split."""
    graphs = read_scene_graphs(data / "sceneGraphs" / "train_sceneGraphs.json")
    chosen = sorted(graphs)[:images]
    folder = ImageFolder(data / "images")
    features: dict[str, list[Tensor]] = defaultdict(list)
    patches: dict[str, list[Tensor]] = defaultdict(list)
    first, *others = streams.encoders
    for batch in _batches(chosen, 25):
        of_batch = [graphs[image_id] for image_id in batch]
        found = streams.tokens(folder, batch)
        for name, tokens in found.items():
            features[name].append(at_objects(tokens, of_batch))
        for name in others:
            window = in_their_windows(found[name], found[first].grid, of_batch)
            features[f"{name}, window"].append(window)
        for name in streams.encoders if len(patches[first]) < RANKED else ():
            patches[name].append(found[name].values[:, found[name].prefix :].flatten(0, 1))
    objects = [(n, item) for n, image_id in enumerate(chosen) for item in graphs[image_id].objects]
    joined = {name: torch.cat(parts).numpy() for name, parts in features.items()}
    plain = list(streams.encoders)
    if len(plain) > 1:
        joined[" and ".join(plain)] = np.concatenate([joined[name] for name in plain], axis=1)
    return Probed(
        images=np.array([number for number, _ in objects]),
        values={key: [value_of(item, key) for _, item in objects] for key in world.values},
        features=joined,
        ranks={
            name: (effective_rank(torch.cat(parts)), parts[0].shape[1])
            for name, parts in patches.items()
        },
    )


def measure(probed: Probed, seeds: int) -> Metrics:
    """Accuracy on images to test, by tokens and attribute type, one of each seed."""
    found: Metrics = defaultdict(lambda: defaultdict(list))
    for seed in range(1, seeds + 1):
        count = int(probed.images.max()) + 1
        order = np.random.default_rng(seed).permutation(count)
        place = np.empty(count)
        place[order] = (np.arange(count) + 0.5) / count
        part = np.digitize(place[probed.images], (FITTED, CHOSEN))
        for key, values in probed.values.items():
            known = np.array([value is not None for value in values])
            names = sorted({value for value in values if value is not None})
            labels = np.array([names.index(value) if value is not None else -1 for value in values])
            fit, choose, test = (known & (part == number) for number in range(3))
            counts = np.bincount(labels[fit], minlength=len(names))
            found["most frequent"][key].append(float((labels[test] == counts.argmax()).mean()))
            for name, features in probed.features.items():
                scores = _ridge(features[fit], labels[fit], len(names), features[choose | test])
                chosen = choose[choose | test]
                rights = scores.argmax(axis=2) == labels[choose | test]
                best = int(rights[:, chosen].mean(axis=1).argmax())
                found[name][key].append(float(rights[best, ~chosen].mean()))
    return found


def _ridge(
    features: Features, labels: npt.NDArray[np.int64], classes: int, asked: Features
) -> Features:
    """Scores [len(PENALTIES), asked, classes] of ridge regression onto one-hot labels."""
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs = ((features - mean) / spread).astype(np.float64)
    targets = np.eye(classes)[labels]
    offset = targets.mean(axis=0)
    values, vectors = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    projected = vectors.T @ (inputs.T @ (targets - offset)) / len(inputs)
    rotated = ((asked - mean) / spread) @ vectors
    return np.stack(
        [rotated @ (projected / (values[:, None] + penalty)) + offset for penalty in PENALTIES]
    ).astype(np.float32)


def table(metrics: Metrics) -> str:
    """Accuracies in percent, mean and standard deviation over seeds, in Markdown."""

    def cell(values: Sequence[float]) -> str:
        mean = f"{100 * statistics.mean(values):.1f}"
        return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean

    names = list(metrics)
    keys = list(metrics[names[0]])
    rows = [(key, *(cell(metrics[name][key]) for name in names)) for key in keys]
    return markdown(rows, ("attribute", *names)) + "\n"


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _named(text: str) -> tuple[str, str]:
    name, _, path = text.rpartition("=")
    return (name or Path(path).parent.name or path), path


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Probe, and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.probes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="folder of metrics.json and table.md")
    parser.add_argument(
        "--data", type=Path, default=Path("data/mini_gqa"), help="a mini-GQA (%(default)s)"
    )
    parser.add_argument("--model-type", default="mini", help="type of the encoders (%(default)s)")
    parser.add_argument(
        "--weights",
        nargs="*",
        type=_named,
        default=[],
        metavar="[NAME=]PATH",
        help="trained fusions, whose fused tokens are probed too",
    )
    parser.add_argument("--images", type=int, default=1000, help="images (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="divisions of images (%(default)s)")
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="model.KEY=VALUE", help="of the model"
    )
    given = parser.parse_args(argv)
    metadata = given.data / "metadata.json"
    try:
        world = WORLDS[parse_json(metadata.read_text(encoding="utf-8")).get("world", SHAPES.name)]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{metadata}: no mini-GQA ({error}). Draw one: python -m lavis_ext.datasets.mini_gqa "
            f"{given.data}."
        ) from error
    streams = Streams(given.model_type, dict(given.weights), given.options)
    probed = read_features(given.data, streams, world, given.images)
    metrics = measure(probed, given.seeds)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    text = table(metrics) + "\nEffective rank: "
    text += (
        ", ".join(f"{name} {rank:.1f} of {d}" for name, (rank, d) in probed.ranks.items()) + "\n"
    )
    (given.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
