"""What a push publishes: trained weights, with what their run's folder says about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lavis_ext.checkpoints.needs import weight_sources
from lavis_ext.checkpoints.sources import INSTALLED, PACKAGED, is_hub_name
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.addresses import is_address
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import is_file, is_folder, real_path, required_object
from lavis_ext.config.loader import load_yaml, merge
from lavis_ext.config.typed import look_up, typed
from lavis_ext.evaluation.bootstrap import Score
from lavis_ext.models.base import TrainableModel
from lavis_ext.runners.run_folder import CONFIG, METRICS

BEST = "_best.safetensors"
ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class SplitMetrics:
    """Final metrics of a split.

    Attributes:
        run: name of the run that evaluated it.
        task: name of the run's task.
        split: name of the split.
        scores: metrics by name, in the run's units (shares are 0 to 1), with intervals if the run
            has them.
    """

    run: str
    task: str
    split: str
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Published:
    """Trained weights and the record of their run.

    Attributes:
        path: file of the weights.
        weights: its content.
        model_class: class of the model.
        sources: source of each pretrained file that the model loads besides, by config key.
        metrics: final metrics of the run, then those of further evaluations.
        files: metrics files to publish by name in the repository.
        environment: the run's ``environment.json``; empty without one.
    """

    path: Path
    weights: TrainedWeights
    model_class: type[TrainableModel]
    sources: Mapping[str, str]
    metrics: Sequence[SplitMetrics] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> Mapping[str, Any]:
        """The section ``model`` of the weights' config."""
        section: Mapping[str, Any] = self.weights.config["model"]
        return section


def read_published(source: Path, evaluations: Sequence[Path] = ()) -> Published:
    """Read what ``source``, a run's folder or a file of trained weights, has to publish.

    ``evaluations`` are folders of runs of ``evaluate.py`` on these weights. Raises UserError for a
    folder without best weights, for other weights, and for evaluations of other weights.
    """
    path = _weights_file(source)
    weights = TrainedWeights.load(path, key="RUN_OR_WEIGHTS")
    arch = weights.config["model"].get("arch")
    model_class = look_up("model", arch, f"RUN_OR_WEIGHTS: {path}: model.arch")
    if not issubclass(model_class, TrainableModel):
        raise UserError(f"RUN_OR_WEIGHTS: {path} is of {arch}, which this library can't load.")
    folders = [path.parent] if path.name.endswith(BEST) else []
    for folder in evaluations:
        _check_evaluated(folder, path, model_class.weights_key)
    metrics, files = [], {}
    for folder in [*folders, *evaluations]:
        metrics += _metrics_of(folder)
        if is_file(folder / METRICS):
            name = METRICS if folder == path.parent else f"{real_path(folder).name}_{METRICS}"
            files[name] = folder / METRICS
    environment = _environment(path.parent) if folders else {}
    sources = _sources(path, model_class, arch)
    return Published(path, weights, model_class, sources, metrics, files, environment)


def is_on_this_machine(source: str) -> bool:
    """Whether a source of weights is a path, which means nothing on another machine."""
    return not (
        source.startswith((PACKAGED, INSTALLED)) or is_address(source) or is_hub_name(source)
    )


def _weights_file(source: Path) -> Path:
    if is_file(source):
        return source
    if not is_folder(source):
        raise UserError(
            f"RUN_OR_WEIGHTS: there is no file or folder {shortened(str(source), 300)}."
        )
    found = sorted(source.glob(f"*{BEST}"))
    if not found:
        raise UserError(
            f"RUN_OR_WEIGHTS: {source} has no *{BEST}, which training writes at its first "
            "validation. Name the folder of a run that trained, or a file of weights."
        )
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise UserError(
            f"RUN_OR_WEIGHTS: {source} has several weights ({names}); name one of them."
        )
    return found[0]


def _sources(path: Path, model_class: type[TrainableModel], arch: str) -> dict[str, str]:
    """Sources of the files that the model loads besides its trained weights, by key."""
    given = OmegaConf.create({"model": {"arch": arch, model_class.weights_key: str(path)}})
    defaults = OmegaConf.create({"model": model_class.default_section(given.model)})
    section = typed(model_class.Config, merge(defaults, given).model, "model")
    own = f"model.{model_class.weights_key}"
    return {key: source for key, source, _ in weight_sources(section, "model") if key != own}


def _check_evaluated(folder: Path, weights: Path, key: str) -> None:
    if not is_file(folder / CONFIG):
        raise UserError(f"--evaluation: {folder} is not the folder of a run: it has no {CONFIG}.")
    named = _section(folder, "model").get(key)
    if not is_file(folder / METRICS):
        raise UserError(f"--evaluation: {folder} has no {METRICS}; only finished runs have one.")
    if not named or real_path(Path(named)) != real_path(weights):
        raise UserError(f"--evaluation: {folder} evaluated {named}, not {weights}.")


def _section(folder: Path, name: str) -> dict[str, Any]:
    """A section of a run's config. Raises UserError for a file that is no config."""
    path = folder / CONFIG
    if not is_file(path):
        raise UserError(f"{path} is missing: {folder} has metrics, and no config that they are of.")
    config: Any = OmegaConf.to_container(load_yaml(path))
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{path} isn't a run's: its section '{name}' is no mapping.")
    return section


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / ENVIRONMENT
    return required_object(path) if is_file(path) else {}


def _metrics_of(folder: Path) -> list[SplitMetrics]:
    """Final metrics of a run by split; none of a run that hasn't finished."""
    if not is_file(folder / METRICS):
        return []
    task = str(_section(folder, "run").get("task"))
    found = []
    for split, metrics in required_object(folder / METRICS).items():
        path = folder / METRICS
        try:
            scores = {name: _score({"value": value, "count": 0}) for name, value in metrics.items()}
            path = folder / f"{split}_scores.json"
            if is_file(path):
                content = required_object(path)
                named = {**content, **content.get("metrics", {})}
                scores = {
                    name: _score(each)
                    for name, each in named.items()
                    if isinstance(each, dict) and "value" in each
                }
        except (AttributeError, TypeError):
            raise UserError(
                f"{path} isn't what this version writes: metrics of {shortened(split)} aren't "
                "numbers by name. Evaluate the run's weights again (evaluate.py), and give that "
                "run by --evaluation."
            ) from None
        found.append(SplitMetrics(real_path(folder).name, task, split, scores))
    return found


def _score(values: Mapping[str, Any]) -> Score:
    """A metric of a run's file. Raises TypeError for values that aren't numbers."""
    score = Score(**values)
    numbers = (score.value, score.count, score.low or 0.0, score.high or 0.0)
    if not all(isinstance(each, int | float) for each in numbers):
        raise TypeError("not a number")
    return score
