"""An image classifier on folders of pictures: data set, model and task of one's own.

Pictures lie in ``ROOT/train/CLASS/*.png`` and ``ROOT/val/CLASS/*.png``.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.files import entries
from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.datasets.base import DatasetBuilder, PictureDataset
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.evaluation.report.content import ReportedSplit
from lavis_ext.models.base import ModelConfig, StepOutput, TrainableModel
from lavis_ext.registry import registry
from lavis_ext.tasks.base import EvalStep, Splits, Task


class Pictures(PictureDataset):
    noun = "pictures"

    def __init__(self, folder, classes):
        super().__init__(ImageFolder(folder, recursive=True), self.resized)
        self.names = list(self.images)
        self.labels = torch.tensor([classes.index(name.split("/")[0]) for name in self.names])

    def __len__(self):
        return len(self.names)

    def image_ids(self, rows):
        return [self.names[row] for row in rows]

    ids = image_ids  # each picture is one example

    def fields(self, rows, image_index, epoch):
        return {"image_index": torch.tensor(image_index), "label": self.labels[rows]}

    @staticmethod
    def resized(picture):
        return {"pixels": resize(pil_to_tensor(picture), [32, 32])}


@dataclass
class FoldersConfig:
    root: str = option("data/pictures", "Folder with train and val, and in them a folder a class.")


@registry.register_builder("picture_folders")
class PictureFolders(DatasetBuilder):
    Config = FoldersConfig

    def build_datasets(self, sizes, **_):
        root, train = Path(self.config.root), Path(self.config.root, "train")
        classes = [folder.name for folder in entries(train)]
        return {split: Pictures(root / split, classes) for split in sizes}


@dataclass
class ClassifierConfig(ModelConfig):
    arch: str = option("classifier", "The model's name in the registry.")
    classes: list[str] = option(list, "Names of the classes, by alphabet.")
    weights: str | None = option(None, "File that training wrote, to be loaded.")


@registry.register_model("classifier")
class Classifier(TrainableModel):
    Config = ClassifierConfig
    weights_name = "classifier"
    metrics = (Metric("accuracy", "share"),)

    def __init__(self, config, *, load_weights=True):
        super().__init__()
        self.config = config
        layers = nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
        last = nn.Linear(256, len(config.classes))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1), last)
        if config.weights and load_weights:
            self.load_trained(TrainedWeights.load(config.weights), config.weights)

    def scores(self, samples):
        return self.layers(samples["images"]["pixels"] / 255)[samples["image_index"]]

    def forward(self, samples):
        scores, labels = self.scores(samples), samples["label"]
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum")
        right = (scores.argmax(dim=1) == labels).float().sum()
        return StepOutput({"cross_entropy": loss}, {"accuracy": right}, len(scores))


@registry.register_task("classify")
class Classify(Task):
    splits = Splits(test=())
    default_metric = "accuracy"

    def valid_step(self, model, samples):
        step = super().valid_step(model, samples)
        best = [model.config.classes[i] for i in model.scores(samples).argmax(dim=1)]
        predictions = dict(zip(samples["ids"], best, strict=True))
        return EvalStep(step.report, step.count, {"predictions": predictions})

    def reported(self, split, dataset, model, evaluation):
        declared = {metric.name: metric for metric in self.metrics(model)}
        examples = [
            {"id": name, "image": name, "prediction": given, "answer": name.split("/")[0]}
            for name, given in evaluation.predictions.items()
        ]
        return ReportedSplit(evaluation.metrics, declared, examples=examples, images=dataset.images)
