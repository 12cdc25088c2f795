"""An image classifier on folders of pictures: a model, a data set and a task of one's own.

Pictures lie in ``ROOT/train/CLASS/*.png`` and ``ROOT/val/CLASS/*.png``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.datasets.base import PictureDataset
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.evaluation.report.content import ReportedSplit
from lavis_ext.models.base import StepOutput, TrainableModel
from lavis_ext.registry import BaseDatasetBuilder, registry
from lavis_ext.tasks.base import EvalStep, Evaluation, Splits, Task

SIDE = 32


class Pictures(PictureDataset):
    """One split: each picture is an example, its folder the class."""

    noun = "pictures"

    def __init__(self, folder: Path, classes: list[str]) -> None:
        super().__init__(ImageFolder(folder, recursive=True), _processed)
        self.names = sorted(self.images.names())
        self.labels = [classes.index(name.split("/")[0]) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def image_ids(self, rows: np.ndarray) -> list[str]:
        return [self.names[row] for row in rows]

    ids = image_ids

    def fields(self, rows: np.ndarray, image_index: list[int], epoch: int) -> dict[str, Any]:
        return {"image_index": torch.tensor(image_index), "label": self._labels(rows)}

    def _labels(self, rows: np.ndarray) -> Tensor:
        return torch.tensor([self.labels[row] for row in rows])


def _processed(picture: Image.Image) -> dict[str, Tensor]:
    return {"pixels": resize(pil_to_tensor(picture), [SIDE, SIDE])}


@dataclass
class FoldersConfig:
    root: str = option("data/pictures", "Folder with train and val, a folder in them per class.")


@registry.register_builder("picture_folders")
class PictureFolders(BaseDatasetBuilder):
    Config = FoldersConfig

    def __init__(self, config: FoldersConfig) -> None:
        self.config = config

    @classmethod
    def default_config_path(cls, type: str | None = None) -> None:
        """There is no YAML with defaults."""

    def build_datasets(self, sizes: Mapping[str, int | None], **_: Any) -> dict[str, Pictures]:
        root = Path(self.config.root)
        classes = sorted(path.name for path in (root / "train").iterdir())
        return {split: Pictures(root / split, classes) for split in sizes}


@dataclass
class ClassifierConfig:
    arch: str = option("classifier", "The model's name in the registry.")
    width: int = option(16, "Channels.", at_least=1)
    classes: list[str] = option(list, "Names of the classes, by alphabet.")
    weights: str | None = option(None, "File that training wrote, to be loaded.")


@registry.register_model("classifier")
class Classifier(TrainableModel):
    Config = ClassifierConfig
    weights_name = "classifier"
    metrics = [Metric("accuracy", "share")]

    def __init__(self, config: ClassifierConfig, *, load_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(
            nn.Conv2d(3, config.width, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
        )
        self.head = nn.Sequential(nn.Dropout(0.1), nn.LazyLinear(len(config.classes)))
        self.scores(torch.zeros(1, 3, SIDE, SIDE))
        if config.weights and load_weights:
            self.load_trained(TrainedWeights.load(config.weights), config.weights)

    def scores(self, pixels: Tensor) -> Tensor:
        return self.head(self.layers(pixels / 255).flatten(1))

    def forward(self, samples: Any) -> StepOutput:
        scores = self.scores(samples["images"]["pixels"])[samples["image_index"]]
        losses = nn.functional.cross_entropy(scores, samples["label"], reduction="sum")
        right = (scores.argmax(dim=1) == samples["label"]).float().sum()
        return StepOutput({"cross_entropy": losses}, {"accuracy": right}, len(scores))


@registry.register_task("classify")
class Classify(Task):
    splits = Splits(("train",), ("val",), ())
    default_metric = "accuracy"

    def valid_step(self, model: Classifier, samples: Any) -> EvalStep:
        step = super().valid_step(model, samples)
        best = model.scores(samples["images"]["pixels"])[samples["image_index"]].argmax(dim=1)
        names = [model.config.classes[place] for place in best.tolist()]
        predictions = dict(zip(samples["ids"], names, strict=True))
        return EvalStep(step.report, step.count, {"predictions": predictions})

    def reported(
        self, split: str, dataset: Pictures, model: Classifier, evaluation: Evaluation
    ) -> ReportedSplit:
        declared = {metric.name: metric for metric in self.metrics(model)}
        examples = [
            {"id": name, "image": name, "question": "Which class?", "prediction": given}
            | {"answer": name.split("/")[0]}
            for name, given in evaluation.predictions.items()
        ]
        return ReportedSplit(evaluation.metrics, declared, examples=examples, images=dataset.images)
