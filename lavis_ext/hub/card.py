"""The model card of published weights, made of their run's record."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import OmegaConf

from lavis_ext.checkpoints.sources import PACKAGED, is_hub_name
from lavis_ext.common.errors import printable
from lavis_ext.common.tables import markdown
from lavis_ext.common.version import __version__
from lavis_ext.evaluation.bootstrap import Score
from lavis_ext.hub.published import Published, SplitMetrics, is_on_this_machine


def model_card(published: Published, repository: str, license_id: str | None = None) -> ModelCard:
    """The card of ``published`` weights in the ``repository`` OWNER/NAME.

    ``license_id`` is an identifier of the hub's, such as ``mit``; None leaves the field out.
    """
    parts = [
        f"# {repository.rpartition('/')[2]}",
        _introduction(published),
        _use(published, repository),
        *_metrics(published.metrics),
        _data(published),
        _training(published),
        _base(published),
        _config(published),
    ]
    data = _card_data(published, repository, license_id)
    body = printable("\n\n".join(part.strip() for part in parts))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _card_data(published: Published, repository: str, license_id: str | None) -> ModelCardData:
    tag = published.model_class.pipeline_tag
    results = [
        EvalResult(
            task_type=tag,
            dataset_type=" ".join(_datasets(published)),
            dataset_name=f"{' '.join(_datasets(published))} ({each.split})",
            dataset_split=each.split,
            metric_type=name,
            metric_value=score.value,
            metric_name=f"{name} ({each.task}, {each.run})",
        )
        for each in published.metrics
        for name, score in each.scores.items()
        if tag is not None and math.isfinite(score.value)
    ]
    bases = {each for each in published.sources.values() if is_hub_name(each)}
    return ModelCardData(
        library_name="lavis_ext",
        license=license_id,
        pipeline_tag=tag,
        base_model=sorted(each.partition("@")[0] for each in bases) or None,
        tags=["lavis", str(published.section["arch"])],
        model_name=repository,
        eval_results=results or None,
    )


def _introduction(published: Published) -> str:
    weights, section = published.weights, published.section
    kind = section.get("model_type")
    fusion = section.get("fusion")
    named = [f"`{section['arch']}`"]
    if kind:
        named.append(f"type `{kind}`")
    if isinstance(fusion, dict) and fusion.get("name"):
        named.append(f"fusion `{fusion['name']}`")
    selected = "without validation"
    if weights.metric is not None and weights.value is not None:
        selected = f"selected by {weights.metric} {weights.value:.4f} on validation"
    size = sum(tensor.numel() for tensor in weights.state.values())
    return (
        f"Trained weights of {', '.join(named)}: {size:,} parameters after {weights.step:,} steps, "
        f"{selected}. Published by lavis_ext {__version__}."
    )


def _use(published: Published, repository: str) -> str:
    key = published.model_class.weights_key
    return f"""## Use

In any config of lavis_ext, or on its command line:

```sh
python evaluate.py --cfg-path CONFIG.yaml --options model.{key}={repository}
```

`{repository}@COMMIT` pins a revision. The file holds its config, so no model type is needed."""


def _metrics(metrics: Sequence[SplitMetrics]) -> list[str]:
    if not metrics:
        return ["## Metrics\n\nThe run had no final evaluation when these weights were published."]
    parts = ["## Metrics", "Shares are 0 to 1; intervals are 95 %, by bootstrapping images."]
    for each in metrics:
        rows = [_row(name, score) for name, score in each.scores.items()]
        parts += [
            f"**{each.split}**, task `{each.task}`, run `{each.run}`",
            markdown(rows, ("metric", "value", "95 % interval", "examples")),
        ]
    return parts


def _row(name: str, score: Score) -> tuple[str, str, str, str]:
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"{score.low:.4f} to {score.high:.4f}"
    return name, f"{score.value:.4f}", interval, f"{score.count:,}" if score.count else ""


def _data(published: Published) -> str:
    run: Any = published.weights.config.get("run") or {}
    rows = [("data sets", ", ".join(_datasets(published)))]
    for role in ("train", "valid", "test"):
        splits = ", ".join(run.get(f"{role}_splits") or ()) or "none"
        small = run.get(f"small_{'val' if role == 'valid' else role}_size")
        limit = f", a sample ({small} of `run.sample_by`: {run.get('sample_by')})" if small else ""
        rows.append((role, splits + limit))
    return f"## Data\n\n{markdown(rows, ('', ''))}"


def _datasets(published: Published) -> list[str]:
    """Names of the data sets, each with its type."""
    datasets: Any = published.weights.config.get("datasets") or {}
    return [
        f"{name} (type {each['type']})" if isinstance(each, dict) and each.get("type") else name
        for name, each in datasets.items()
    ]


def _training(published: Published) -> str:
    environment = published.environment
    if not environment:
        return "## Training\n\nThe weights were published without their run's folder."
    rows = [("python", str(environment.get("python")))]
    rows += [(name, str(each)) for name, each in (environment.get("packages") or {}).items()]
    if revision := environment.get("git_revision"):
        rows.append(("git revision", revision))
    command = shlex.join(["python", *map(str, environment.get("command", ()))])
    return f"## Training\n\n```sh\n{command}\n```\n\n{markdown(rows, ('version of', ''))}"


def _base(published: Published) -> str:
    rows = [(f"`{key}`", _source(source)) for key, source in published.sources.items()]
    return (
        "## Loaded besides\n\nThe repository has the trained weights only. The model loads:\n\n"
        f"{markdown(rows, ('key', 'source'))}"
    )


def _source(source: str) -> str:
    if source.startswith(PACKAGED):
        return f"`{source}`, part of lavis_ext"
    if is_on_this_machine(source):
        return f"`{source}`, a file of the machine that trained: set the key to a copy"
    return f"`{source}`"


def _config(published: Published) -> str:
    text = OmegaConf.to_yaml(OmegaConf.create(published.weights.config))
    return (
        f"## Config\n\n<details><summary>config.yaml</summary>\n\n```yaml\n{text}```\n\n</details>"
    )
