"""The interface to LAVIS: its objects, without its models, with helpful errors."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_ext.common import environment
from lavis_ext.common.errors import UserError
from lavis_ext.registry import (
    BaseDatasetBuilder,
    BaseModel,
    BaseProcessor,
    BaseTask,
    LavisConfig,
    LinearWarmupCosineLRScheduler,
    NameTaken,
    RunnerBase,
    UnknownName,
    registered,
    registry,
)

ROOT = Path(__file__).parents[1]


def run_python(code: str, cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    search_path = os.pathsep.join(map(str, [*path, ROOT]))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
        check=False,
    )


def forget(kind: str, name: str) -> None:
    del registry.mapping[f"{kind}_name_mapping"][name]


@pytest.mark.parametrize(
    ("ours", "module", "name"),
    [
        (BaseModel, "lavis.models.base_model", "BaseModel"),
        (BaseModel, "lavis.models", "BaseModel"),
        (BaseTask, "lavis.tasks", "BaseTask"),
        (BaseProcessor, "lavis.processors", "BaseProcessor"),
        (RunnerBase, "lavis.runners", "RunnerBase"),
        (LavisConfig, "lavis.common.config", "Config"),
        (LinearWarmupCosineLRScheduler, "lavis.common.optims", "LinearWarmupCosineLRScheduler"),
        (
            BaseDatasetBuilder,
            "lavis.datasets.builders.base_dataset_builder",
            "BaseDatasetBuilder",
        ),
        (registry, "lavis.common.registry", "registry"),
        (registry, "lavis", "registry"),
    ],
)
def test_names_are_laviss_own_objects(ours: object, module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is ours


def test_import_is_quiet_and_leaves_out_models_and_heavy_packages(tmp_path: Path) -> None:
    code = """
import json, sys, warnings
from lavis_ext.registry import registry
loaded = list(sys.modules)
import lavis.common.dist_utils
warnings.simplefilter("ignore")  # timm warns that the module has moved
downloads = type(lavis.common.dist_utils.timm_hub.get_cache_dir()).__name__
paths = registry.mapping["paths"]
print(json.dumps([loaded, downloads, paths]))
"""
    run = run_python(code, tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    loaded, downloads, paths = json.loads(run.stdout)
    assert "lavis.models.base_model" in loaded
    assert not {"lavis.models.blip_models", "lavis.models.med", "timm", "pandas"} & set(loaded)
    assert downloads == "str", "the download helper of timm does not load when it is used"
    assert paths["cache_root"] == str(tmp_path / "data")
    assert Path(paths["library_root"]).name == "lavis"
    assert (Path(paths["library_root"]) / "configs" / "default.yaml").is_file()


def test_unresolved_name_of_a_replaced_package_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="load_model_quickly"):
        from lavis.models import load_model_quickly  # noqa: F401


def test_an_already_imported_lavis_is_unchanged(tmp_path: Path) -> None:
    """LAVIS imported normally, as in an environment that it supports."""
    library = Path(registry.get_path("library_root"))
    said = {
        "": "from lavis.common.registry import registry\n"
        "registry.register_path('library_root', 'as it was')\n"
        "registry.register_path('cache_root', 'as it was')\n"
        "registry.register('MAX_INT', 5)\n",
        "models": "from lavis.models.base_model import BaseModel\n",
        "processors": "from lavis.processors.base_processor import BaseProcessor\n",
        "tasks": "",
        "runners": "",
        "datasets/builders": "",
    }
    for package, statements in said.items():
        init_file = tmp_path / "lavis" / package / "__init__.py"
        init_file.parent.mkdir(parents=True, exist_ok=True)
        init_file.write_text(f"__path__.append({str(library / package)!r})\n{statements}")
    (tmp_path / "lavis" / "datasets" / "datasets").symlink_to(library / "datasets" / "datasets")
    (tmp_path / "lavis" / "datasets" / "data_utils.py").symlink_to(
        library / "datasets" / "data_utils.py"
    )
    code = """
import sys, lavis
before = lavis
from lavis_ext.registry import registry
assert sys.modules["lavis"] is before
assert registry is lavis.registry
assert registry.get_path("cache_root") == "as it was"
assert registry.get("MAX_INT") == 5
try:
    registry.get_model_class("blip")
except KeyError:
    print("strict")
"""
    run = run_python(code, tmp_path, tmp_path)
    assert run.stdout == "strict\n", run.stderr


@pytest.mark.parametrize(
    ("pretence", "message"),
    [
        ("util.find_spec = lambda name, package=None: None", "LAVIS is not installed"),
        ("metadata.version = lambda name: '1.0.1'", "salesforce-lavis 1.0.1 is installed"),
    ],
)
def test_missing_or_other_lavis_names_the_command(
    tmp_path: Path, pretence: str, message: str
) -> None:
    code = f"from importlib import metadata, util\n{pretence}\nimport lavis_ext.registry"
    run = run_python(code, tmp_path)
    assert run.returncode != 0
    sentence = run.stderr.strip().splitlines()[-1]
    assert message in sentence
    assert "pip install --no-deps salesforce-lavis==1.0.2" in sentence


@pytest.mark.parametrize(
    ("torch", "requirement", "fits"),
    [
        ("2.11.0", "torch==2.11.0", True),
        ("2.11.0+cpu", "torch (==2.11.0)", True),
        ("2.12.0", "torch==2.11.0", False),
        ("2.15.0", "torch (>=2.14.0)", True),
        ("2.13.0", "torch (>=2.14.0)", False),
    ],
)
def test_torchvision_made_for_another_torch(torch: str, requirement: str, fits: bool) -> None:
    requirements = ["numpy", requirement, 'gdown>=4.7 ; extra == "gdown"']
    if fits:
        environment.check_torch_fits(torch, "0.26.0", requirements)
        return
    with pytest.raises(UserError) as raised:
        environment.check_torch_fits(torch, "0.26.0", requirements)
    assert isinstance(raised.value, ImportError)
    for part in (f"torch {torch}", "torchvision 0.26.0", "pip install"):
        assert part in str(raised.value)


def test_torchvision_that_fails_to_load_is_reported_with_both_builds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(environment.importlib, "import_module", fail)
    with pytest.raises(environment.InstallationError) as raised:
        environment.import_torchvision()
    monkeypatch.undo()
    for package in ("torch", "torchvision"):
        assert f"{package} {importlib.import_module(package).__version__}" in str(raised.value)
    assert "nms" in str(raised.value)


@pytest.mark.parametrize(
    ("getter", "kind"),
    [
        ("get_builder_class", "dataset builder"),
        ("get_task_class", "task"),
        ("get_processor_class", "processor"),
        ("get_model_class", "model"),
        ("get_lr_scheduler_class", "learning-rate scheduler"),
        ("get_runner_class", "runner"),
        ("get_fusion_class", "fusion"),
        ("get_objective_class", "objective"),
        ("get_path", "path"),
    ],
)
def test_an_unknown_name_is_an_error_with_its_kind(getter: str, kind: str) -> None:
    with pytest.raises(UnknownName, match=f"^No {kind} is registered as 'no such name'"):
        getattr(registry, getter)("no such name")


def test_an_unknown_name_is_an_error_with_known_and_nearest_names() -> None:
    with pytest.raises(UserError) as raised:
        registry.get_lr_scheduler_class("linear_warmup_cosin_lr")
    assert isinstance(raised.value, KeyError)
    message = str(raised.value)
    for name in registry.list_lr_schedulers():
        assert name in message
    assert message.endswith("Did you mean 'linear_warmup_cosine_lr'?")


def test_classes_register_the_lavis_way() -> None:
    @registry.register_model("entry_test_model")
    class Model(BaseModel):
        pass

    try:
        assert registry.get_model_class("entry_test_model") is Model
        assert (
            importlib.import_module("lavis").registry.get_model_class("entry_test_model") is Model
        )
        with pytest.raises(KeyError, match="already registered"):
            registry.register_model("entry_test_model")(type("Other", (BaseModel,), {}))
        assert "entry_test_model" in registered()["model"]
    finally:
        forget("model", "entry_test_model")


@pytest.mark.parametrize("kind", ["fusion", "objective"])
def test_fusions_and_objectives_are_kinds_of_the_registry(kind: str) -> None:
    register = getattr(registry, f"register_{kind}")
    first, second = type("First", (), {}), type("Second", (), {})
    try:
        assert register("entry_test")(first) is first
        assert getattr(registry, f"get_{kind}_class")("entry_test") is first
        assert registry.mapping[f"{kind}_name_mapping"]["entry_test"] is first
        assert "entry_test" in getattr(registry, f"list_{kind}s")()
        assert registered()[kind] == getattr(registry, f"list_{kind}s")()
        register("entry_test")(first)
        with pytest.raises(NameTaken, match=r"'entry_test' belongs to .*First") as raised:
            register("entry_test")(second)
        assert isinstance(raised.value, KeyError)
        assert isinstance(raised.value, UserError)
    finally:
        forget(kind, "entry_test")
