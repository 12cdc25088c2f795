"""What a push publishes: trained weights, with what their run's folder says about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from lavis_ext.checkpoints.needs import weight_sources
from lavis_ext.checkpoints.sources import INSTALLED, PACKAGED, is_hub_name
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.addresses import is_address
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import is_file, is_folder, parse_json
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
            name = METRICS if folder == path.parent else f"{folder.resolve().name}_{METRICS}"
            files[name] = folder / METRICS
    environment = _json(path.parent / ENVIRONMENT) if folders else {}
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
    config = _config(folder)
    named = config.get("model", {}).get(key)
    if not is_file(folder / METRICS):
        raise UserError(f"--evaluation: {folder} has no {METRICS}; only finished runs have one.")
    if not named or Path(named).resolve() != weights.resolve():
        raise UserError(f"--evaluation: {folder} evaluated {named}, not {weights}.")


def _config(folder: Path) -> dict[str, Any]:
    """A run's config. Raises UserError for a folder that is no run."""
    if not is_file(folder / CONFIG):
        raise UserError(f"--evaluation: {folder} is not the folder of a run: it has no {CONFIG}.")
    config: Any = OmegaConf.to_container(load_yaml(folder / CONFIG))
    return cast(dict[str, Any], config)


def _metrics_of(folder: Path) -> list[SplitMetrics]:
    """Final metrics of a run by split; none of a run that hasn't finished."""
    if not is_file(folder / METRICS):
        return []
    task = str((_config(folder).get("run") or {}).get("task"))
    found = []
    for split, metrics in _json(folder / METRICS).items():
        scores = {name: Score(value, 0) for name, value in metrics.items()}
        path = folder / f"{split}_scores.json"
        if is_file(path):
            content = _json(path)
            named = {**content, **content.get("metrics", {})}
            scores = {
                name: Score(**each)
                for name, each in named.items()
                if isinstance(each, dict) and "value" in each
            }
        found.append(SplitMetrics(folder.resolve().name, task, split, scores))
    return found


def _json(path: Path) -> dict[str, Any]:
    """A JSON object that a run wrote; empty if there is none."""
    if not is_file(path):
        return {}
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({shortened(str(error), 120)}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} isn't a run's: it has no JSON object.")
    return content
