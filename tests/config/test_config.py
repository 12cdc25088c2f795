"""The config: precedence of its sources, validity of shipped files, and use of every key."""

import ast
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import lavis_ext.pretraining  # noqa: F401  (its data sets have configs too)
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.config.schema import check, option
from lavis_ext.config.typed import typed
from lavis_ext.datasets.questions.builder import QuestionDataConfig
from lavis_ext.encoders.blip.encoder import BlipEncoderConfig
from lavis_ext.encoders.efficient_sam.encoder import EfficientSamConfig
from lavis_ext.registry import registry
from lavis_ext.tasks.gqa import GqaFusionTask
from tests.sources import parsed

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "lavis_ext"
Make = Callable[..., Config]

MINIMAL: dict[str, Any] = {
    "model": {"arch": "pnp_vqa_fusion", "model_type": "mini"},
    "datasets": {"gqa_fusion": None},
    "run": {"max_epoch": 7},
}


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_options_win_over_yaml_over_defaults_of_data_set_and_model(
    configured: Make, tmp_path: Path
) -> None:
    content = MINIMAL | {
        "model": MINIMAL["model"] | {"streams": {"grid": {"text_layers": 1, "image_size": 48}}},
        "datasets": {"gqa_fusion": {"type": "mini", "mini_gqa": {"seed": 5}}},
    }
    file = written(tmp_path / "c.yaml", content)
    config = configured("run.seed=3", "model.streams.grid.text_layers=6", cfg_path=file)
    assert config.model.streams["grid"].text_layers == 6  # options
    assert config.run.seed == 3
    assert config.run.max_epoch == 7  # YAML
    assert config.datasets["gqa_fusion"].mini_gqa.seed == 5
    assert config.datasets["gqa_fusion"].root == "data/mini_gqa"  # data set's defaults
    assert config.model.streams["grid"].text_width == 128  # model type's defaults
    assert config.run.examples_per_image == 1  # the class's
    sizes = GqaFusionTask(config).build_options(config)["image_sizes"]
    assert sizes == {"grid": 48, "segmentation": 128}  # taken from the model


def test_lavis_reads_the_same_values(configured: Make) -> None:
    config = configured("run.max_epoch=3")
    assert config.run_cfg.max_epoch == config.run.max_epoch == 3
    assert config.model_cfg.streams.grid.text_width == config.model.streams["grid"].text_width
    assert config.datasets_cfg.gqa_fusion.type == "mini"
    assert registry.get("configuration") is config


def test_options_are_pairs_too_as_in_lavis(configured: Make) -> None:
    assert configured("run.max_epoch", "3", "run.seed", "4").run.seed == 4


def test_an_empty_data_set_section_has_the_defaults(configured: Make, tmp_path: Path) -> None:
    config = configured(cfg_path=written(tmp_path / "c.yaml", MINIMAL))
    assert config.datasets["gqa_fusion"].root == "data/gqa"


def test_another_fusion_or_objectives_drop_the_default_options(configured: Make) -> None:
    config = configured("model.fusion.name=sum", "model.objectives.itm.weight=2")
    assert config.model.fusion.name == "sum"
    assert config.model.objectives["itm"].weight == 2


def test_modules_under_imports_are_imported_and_their_classes_found(
    configured: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_objective.py").write_text(
        "from lavis_ext.registry import registry\n"
        "from lavis_ext.objectives.base import Objective\n"
        "@registry.register_objective('of_my_own')\n"
        "class MyObjective(Objective):\n"
        "    def __call__(self, batch, head): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    content = MINIMAL | {
        "imports": ["my_objective"],
        "model": MINIMAL["model"] | {"objectives": {"of_my_own": {"weight": 3}}},
    }
    try:
        config = configured(cfg_path=written(tmp_path / "c.yaml", content))
        assert config.model.objectives["of_my_own"].weight == 3
        with pytest.raises(UserError, match=r"of_my_own\.wait: .*'weight'"):
            configured("model.objectives.of_my_own.wait=1", cfg_path=tmp_path / "c.yaml")
    finally:
        registry.mapping["objective_name_mapping"].pop("of_my_own", None)
        sys.modules.pop("my_objective", None)


def relative(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def contains(whole: Any, part: Any, where: str = "") -> None:
    """Assert that the resolved config ``whole`` contains the YAML ``part``."""
    for key, value in part.items():
        if isinstance(value, dict):
            contains(whole[key], value, f"{where}.{key}")
        elif not (isinstance(value, str) and "${" in value):
            assert whole[key] == value, f"{where}.{key}"


@pytest.fixture(scope="module")
def weights(configured: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of fusion weights with only the facts that configs read."""
    path = tmp_path_factory.mktemp("weights") / "fusion_encoder_best.safetensors"
    config: Any = OmegaConf.to_container(configured().config)
    TrainedWeights({"gate": torch.zeros(1)}, config, metric=None, value=None, step=0).save(path)
    return path


@pytest.mark.parametrize("path", sorted((PROJECT / "projects").rglob("*.yaml")), ids=relative)
def test_every_project_config_is_valid_and_begins_with_its_command(
    path: Path, configured: Make, weights: Path
) -> None:
    evaluates = "model.fusion_weights=" in path.read_text(encoding="utf-8")
    options = [f"model.fusion_weights={weights}"] if evaluates else []
    config = configured(*options, cfg_path=path)
    text = path.read_text(encoding="utf-8")
    contains(config.config, yaml.safe_load(text))
    assert text.startswith("#")
    assert relative(path) in text, "its head gives the command"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("models/*/configs/*.yaml")), ids=relative)
def test_every_model_type_is_sound(path: Path, configured: Make, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    arch = content["model"]["arch"]
    model = {"arch": arch, "model_type": path.stem}
    config = configured(cfg_path=written(tmp_path / "c.yaml", MINIMAL | {"model": model}))
    contains(config.config, content)
    assert path.stem in registry.get_model_class(arch).types()


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("datasets/*/configs/*.yaml")), ids=relative)
def test_every_data_set_type_is_sound(path: Path, configured: Make, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    (name,) = content["datasets"]
    datasets = {name: {"type": path.stem}}
    config = configured(cfg_path=written(tmp_path / "c.yaml", MINIMAL | {"datasets": datasets}))
    contains(config.config, content)
    assert path.stem in registry.get_builder_class(name).DATASET_CONFIG_DICT


def schemas() -> list[type]:
    """Dataclasses of all config sections."""
    kinds = ("builder", "processor", "model", "runner", "fusion", "objective")
    owners = [c for kind in kinds for c in registry.mapping[f"{kind}_name_mapping"].values()]
    found = {c.Config for c in owners if getattr(c, "Config", None)}
    found |= {BlipEncoderConfig, EfficientSamConfig}
    for schema in list(found):
        for field in dataclasses.fields(schema):
            parts = (field.type, *getattr(field.type, "__args__", ()))
            found |= {part for part in parts if dataclasses.is_dataclass(part)}
    return sorted(found, key=lambda schema: schema.__name__)


READS: dict[str, set[Path]] = {}
for _path in PACKAGE.rglob("*.py"):
    for _node in ast.walk(parsed(_path.read_text(encoding="utf-8"))):
        if isinstance(_node, ast.Attribute) and isinstance(_node.ctx, ast.Load):
            READS.setdefault(_node.attr, set()).add(_path)
        elif (  # sections that are not typed yet: section.get("name")
            isinstance(_node, ast.Call)
            and isinstance(_node.func, ast.Attribute)
            and _node.func.attr in ("get", "getattr")
            and _node.args
            and isinstance(_node.args[0], ast.Constant)
        ):
            READS.setdefault(str(_node.args[0].value), set()).add(_path)


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: schema.__name__)
def test_every_key_is_read_somewhere(schema: type) -> None:
    read_by_name = {"train", "eval"} if schema.__name__ == "ProcessorPair" else set()
    unread = [
        field.name
        for field in dataclasses.fields(schema)
        if field.name not in READS and field.name not in read_by_name
    ]
    assert not unread, f"nothing reads {unread} of {schema.__name__}"


def test_the_search_for_unread_keys_finds_all_schemas() -> None:
    names = {schema.__name__ for schema in schemas()}
    assert names >= {
        "RunConfig",
        "WandbConfig",
        "GqaFusionConfig",
        "MismatchedConfig",
        "MiniGqaConfig",
        "ProcessorPair",
        "StreamImagesConfig",
        "QuestionConfig",
        "PnpVqaFusionConfig",
        "BlipEncoderConfig",
        "EfficientSamConfig",
        "DifnetConfig",
        "AnswerConfig",
    }
    assert "fast_train" not in READS


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: schema.__name__)
def test_every_key_has_a_line_of_help_and_a_default_within_its_limits(schema: type) -> None:
    for field in dataclasses.fields(schema):
        if not dataclasses.is_dataclass(field.type) and "| None" not in str(field.type):
            assert field.metadata.get("help"), f"{schema.__name__}.{field.name}"
    if not issubclass(schema, QuestionDataConfig) and schema.__name__ not in (
        "ProcessorPair",  # its processors are given, as those of data sets
        "PnpVqaFusionConfig",  # its streams are
    ):
        check(schema(), schema.__name__)


@dataclasses.dataclass
class Inner:
    rate: float = option(0.5, "A rate.", above=0, at_most=1)


@dataclasses.dataclass
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    sizes: list[int] = option(lambda: [1], "Sizes.", at_least=1)
    kind: str | None = option(None, "A kind.", choices=("small", "large"))

    def check_together(self, where: str) -> None:
        if self.kind == "large" and len(self.sizes) > 1:
            raise UserError(f"{where}: large has one size.")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"inner": {"rate": 0}}, "x.inner.rate is 0.0; it must be above 0."),
        ({"inner": {"rate": 2}}, "x.inner.rate is 2.0; it must be at most 1."),
        ({"inner": {"rate": float("nan")}}, "x.inner.rate is nan; it must be a finite number."),
        ({"inner": {"rate": "fast"}}, "x.inner.rate is 'fast'; it must be a number."),
        ({"inner": 3}, "x.inner is 3; it must be a mapping of keys to values."),
        ({"inner": {"rat": 1}}, "x.inner.rat: there is no such key. Did you mean 'rate'?"),
        ({"sizes": [1, 0]}, "x.sizes is 0; it must be at least 1."),
        ({"sizes": ["a"]}, "x.sizes is ['a']; it must be a list, each entry a whole number."),
        ({"kind": "lage"}, "x.kind is 'lage'; it must be one of: small, large. Did you mean "),
        ({"kind": "large", "sizes": [1, 2]}, "x: large has one size."),
        ({"zzz": 1}, "x.zzz: there is no such key. There are: inner, sizes, kind."),
        (3, "x is 3; it must be a mapping of keys to values."),
        (None, "x is null; it must be a mapping of keys to values."),
    ],
)
def test_a_value_that_does_not_fit_its_schema_is_named(section: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        typed(Outer, section, "x")
    assert str(caught.value).startswith(message)


def test_values_that_fit_are_taken_and_converted() -> None:
    config = typed(Outer, {"inner": {"rate": "1e-3"}, "sizes": [3], "kind": "large"}, "x")
    assert config == Outer(Inner(1e-3), [3], "large")


def test_an_option_that_is_no_text_is_refused_before_a_folder_is_made(
    configured: Callable[..., Config],
) -> None:
    with pytest.raises(UserError, match="has bytes that are no text"):
        configured("run.name=x\udcff")
