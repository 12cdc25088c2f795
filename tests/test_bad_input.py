"""Mistakes of a user: each ends with code 2 and a sentence that says where, before anything runs.

A mistake is an option, a YAML, or a damaged data set. Whatever it is, no traceback is printed and
no run folder is left behind.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lavis_ext.config.loader import Config
from lavis_ext.errors import UserError

PROJECT = Path(__file__).parents[1]
SMALL = PROJECT / "projects" / "pnp-vqa" / "train" / "gqa_small.yaml"
Make = Callable[..., Config]

OPTIONS: dict[str, str] = {
    # Keys that nothing has, at every level.
    "rum.max_epoch=3": "there is no section 'rum'. Did you mean 'run'?",
    "fast_train=true": "there is no section 'fast_train'. There are: model, datasets, run, imports",
    "run.save_every_minutes=0": "run.save_every_minutes is 0.0; it must be above 0.",
    "run.data_faults.retries=-1": "run.data_faults.retries is -1; it must be at least 0.",
    "run.data_faults.then=skp": "then is 'skp'; it must be one of: stop, skip. Did you mean 'skip'",
    "run.data_faults.most_skipped=-1": "most_skipped is -1; it must be at least 0.",
    "run.data_faults.stall_seconds=0": "stall_seconds is 0.0; it must be above 0.",
    "run.watchdog_seconds=0": "run.watchdog_seconds is 0.0; it must be above 0.",
    "run.data_faults=null": "run.data_faults",
    "run.max_skipped_steps=0": "run.max_skipped_steps is 0; it must be at least 1.",
    "run.name=a/b": "run.name is 'a/b'; it must be the name of a folder.",
    "run.max_epochs=3": "run.max_epochs: there is no such key. Did you mean 'max_epoch'?",
    "run.fast_train=true": "run.fast_train: there is no such key.",
    "run.wandb.projct=x": "run.wandb.projct: there is no such key. Did you mean 'project'?",
    "model.blib.image_size=3": "model.blib: there is no such key. Did you mean 'blip'?",
    "model.blip.image_sise=96": "model.blip.image_sise: there is no such key. Did you mean 'image_",
    "model.efficient_sam.dept=3": "model.efficient_sam.dept: there is no such key. Did you mean 'd",
    "model.fusion.dmodel=128": "model.fusion.dmodel: there is no such key. Did you mean 'd_model'?",
    "model.objectives.answer.widht=8": "model.objectives.answer.widht: there is no such key. Did y",
    "datasets.gqa_fusion.rot=x": "datasets.gqa_fusion.rot: there is no such key. Did you mean 'roo",
    "datasets.gqa_fusion.mini_gqa.image=9": "mini_gqa.image: there is no such key. Did you mean 'i",
    "datasets.gqa_fusion.mismatched.hrad=1": "mismatched.hrad: there is no such key. Did you mean",
    "datasets.gqa_fusion.vis_processor.trian.grid_size=9": "vis_processor.trian: there is no such",
    "datasets.gqa_fusion.vis_processor.train.grid_sise=9": "train.grid_sise: there is no such key.",
    "datasets.gqa_fusion.text_processor.eval.max_word=9": "Did you mean 'max_words'?",
    # Names that nothing is registered under.
    "model.arch=pnp_vqa": "model.arch: No model is registered as 'pnp_vqa'. Registered: ",
    "model.model_type=large": "model.model_type is 'large'; pnp_vqa_fusion has: base_esam, base_es",
    "model.fusion.name=difnett": "No fusion is registered as 'difnett'. Registered: difnet, grid_o",
    "model.objectives.itn.weight=1": "No objective is registered as 'itn'. Registered: answer, hea",
    "run.task=gqa": "run.task: No task is registered as 'gqa'. Registered: gqa_fusion",
    "run.runner=fusion_runer": "run.runner: No runner is registered as 'fusion_runer'. Registered:",
    "run.runner=runner_base": "run.runner is 'runner_base', which has no typed config",
    "run.lr_sched=cosine": "run.lr_sched: No learning-rate scheduler is registered as 'cosine'.",
    "datasets.gqa_fussion.root=x": "datasets.gqa_fussion: No dataset builder is registered as 'gqa",
    "datasets.gqa_fusion.type=minni": "type is 'minni'; there are: balanced, all, mini. Did you me",
    "datasets.gqa_fusion.vis_processor.train.name=blip": "train.name: No processor is registered a",
    "datasets.gqa_fusion.subset=al": "subset is 'al'; it must be one of: balanced, all.",
    "imports=[nope_module]": "imports: the module 'nope_module' can't be imported",
    # Values of another type.
    "run.max_epoch=three": "run.max_epoch is 'three'; it must be a whole number.",
    "run.max_epoch=1.5": "run.max_epoch is 1.5; it must be a whole number.",
    "run.max_epoch=null": "run.max_epoch is null; it must be a whole number.",
    "run.init_lr=fast": "run.init_lr is 'fast'; it must be a number.",
    "run.amp=maybe": "run.amp is 'maybe'; it must be true or false.",
    "run.trainable=fusion": "run.trainable is 'fusion'; it must be a list, each entry a text.",
    "run.trainable=[a,[b]]": "run.trainable is ['a', ['b']]; it must be a list, each entry a text.",
    "run.trainable.0=a": "run.trainable is a list, and a mapping can't take its place",
    "run.wandb=true": "run.wandb is true; it must be a mapping of keys to values, or null.",
    "run=3": "the section 'run' is missing, or isn't a mapping.",
    "datasets.gqa_fusion=balanced": "datasets.gqa_fusion is 'balanced'; it must be a mapping",
    "datasets.gqa_fusion.vis_processor=x": "vis_processor is 'x'; it must be a mapping",
    "datasets.gqa_fusion.vis_processor.train=x": "it must be a mapping with `name`, a processor",
    "datasets.gqa_fusion.questions=x.json": "questions is 'x.json'; it must be a mapping",
    "model.blip=3": "model.blip is 3; it must be a mapping of keys to values.",
    "model.objectives=[itm]": "model.objectives is a mapping, and a list can't take its place",
    "model.fusion=difnet": "model.fusion is 'difnet'; it must be a mapping",
    "model.fusion_weights=3": "model.fusion_weights",
    "model.objectives.answer=3": "model.objectives.answer is 3; it must be a mapping",
    "imports=os": "imports is 'os'; it must be a list of names of modules.",
    # Values out of range, and values that don't go together.
    "run.max_epoch=0": "run.max_epoch is 0; it must be at least 1.",
    "run.init_lr=-1": "run.init_lr is -1.0; it must be above 0.",
    "run.init_lr=.inf": "run.init_lr is inf; it must be a finite number.",
    "run.min_lr=1": "run.min_lr (1.0) is above init_lr",
    "run.device=gpu": "run.device is 'gpu'; it must be one of: auto, cpu, cuda.",
    "datasets.gqa_fusion.missing_images_limit=2": "missing_images_limit is 2.0; it must be at most",
    "datasets.gqa_fusion.vis_processor.train.grid_size=0": "grid_size is 0; it must be at least 1.",
    "model.blip.image_size=97": "model.blip.image_size is 97; it must be a multiple of",
    "model.objectives.answer.heads=3": "model.objectives.answer.width is 128, which 3 heads can't",
    "run.small_train_size=0": "run.small_train_size is 0; it must be at least 1.",
    "run.small_val_size=0": "run.small_val_size is 0; it must be at least 1.",
    "run.small_test_size=-5": "run.small_test_size is -5; it must be at least 1.",
    "run.small_train_size=many": "run.small_train_size is 'many'; it must be a whole number, or nu",
    "run.small_train_size=2.5": "run.small_train_size is 2.5; it must be a whole number, or null.",
    "run.small_train_size=true": "run.small_train_size is true; it must be a whole number, or null",
    # Splits have one role each.
    "run.train_splits=[val]": "run.train_splits must be [train]",
    "run.valid_splits=[train]": "train can't do two of these",
    "run.valid_splits=[testdev]": "testdev can't do two of these",
    "run.valid_splits=[val,testdev]": "run.valid_splits must name one split",
    "run.test_splits=[train]": "train can't do two of these",
    "run.test_splits=[val,testdev]": "val can't do two of these",
    # Interpolations that lead nowhere.
    "run.output_dir=${nope.x}": "run.output_dir: Interpolation key 'nope.x' not found.",
    "run.output_dir=${oc.env:NOPE}": "run.output_dir: Environment variable 'NOPE' not found.",
    "run.output_dir=${run.output_dir}": "run.output_dir: Recursive interpolation detected.",
    "run.max_epoch=???": "run.max_epoch is ???; give it a value.",
    "datasets.gqa_fusion.root=${": "--options: the value in 'datasets.gqa_fusion.root=${' isn't YA",
    # Options of another form.
    "run.max_epoch": "--options: 'run.max_epoch' isn't of the form KEY=VALUE, such as run.max_epoc",
    "=3": "--options: '=3' isn't of the form KEY=VALUE",
    "run..max_epoch=3": "--options: 'run..max_epoch=3' isn't of the form KEY=VALUE",
    "run.max_epoch=[1": "--options: the value in 'run.max_epoch=[1' isn't YAML",
    'run.x=!!python/object/apply:os.system ["touch made"]': "--options: the value in 'run.x=",
}


def assert_short(message: str) -> None:
    """One or two sentences on one line; a list of names may follow."""
    assert "\n" not in message
    assert len(message.partition("There are:")[0]) < 400
    assert message.rstrip().endswith((".", "?"))
    for word in (
        "None",
        "OmegaConf",
        "ListConfig",
        "DictConfig",
        "AnyNode",
        "full_key",
        "NoneType",
    ):
        assert word not in message


@pytest.mark.parametrize(("wrong", "expected"), OPTIONS.items(), ids=OPTIONS)
def test_a_wrong_option_is_named(
    wrong: str,
    expected: str,
    configured: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        configured(wrong)
    assert expected in str(caught.value)
    assert_short(str(caught.value))
    assert not list(tmp_path.iterdir())


def test_options_of_both_forms_are_refused(configured: Make) -> None:
    with pytest.raises(UserError, match="'3' isn't of the form KEY=VALUE"):
        configured("run.seed=1", "3")
    with pytest.raises(UserError, match=r"'run\.max_epoch' isn't of the form KEY=VALUE"):
        configured("run.max_epoch", "3", "run.seed")


TEXT = SMALL.read_text(encoding="utf-8")
YAMLS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "no config; it must have the sections model, datasets and run."),
    "comments alone": ("# nothing\n", "no config; it must have the sections model, datasets and"),
    "a list": ("- model\n- run\n", "no config; it must have the sections"),
    "a number": ("3", "the config can't be read (it isn't a mapping of keys to values)."),
    "syntax": (f"{TEXT}  bad: [1\n", f"not a YAML file at line {len(TEXT.splitlines()) + 2}"),
    "tab": ("model:\n\tarch: x\n", "not a YAML file at line 2"),
    "key twice": (f"{TEXT}\nrun:\n  seed: 3\n", "(found duplicate key run)"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "not a YAML file (it isn't text)."),
    "python object": (
        TEXT.replace("max_epoch: 5", 'max_epoch: !!python/object/apply:os.system ["touch made"]'),
        "could not determine a constructor",
    ),
    "python name": (TEXT.replace("max_epoch: 5", "max_epoch: !!python/name:os.system"), "at line"),
    "a value to come": (TEXT.replace("max_epoch: 5", "max_epoch: ???"), "run.max_epoch is ???"),
    "half an interpolation": (TEXT.replace("max_epoch: 5", "max_epoch: ${run."), "not a config"),
    "no data sets": (
        "model: {arch: pnp_vqa_fusion}\nrun: {}\n",
        "the section 'datasets' is missing",
    ),
    "run without keys": (
        "model: {arch: pnp_vqa_fusion, model_type: mini}\ndatasets: {gqa_fusion: }\nrun:\n",
        "the section 'run' is missing, or isn't a mapping.",
    ),
    "no arch": ("model: {}\ndatasets: {}\nrun: {}\n", "model.arch is missing"),
    "another section": (f"{TEXT}\npreprocess: {{}}\n", "there is no section 'preprocess'."),
}


@pytest.mark.parametrize(("content", "expected"), YAMLS.values(), ids=YAMLS)
def test_a_wrong_yaml_is_named(
    content: str | bytes,
    expected: str,
    configured: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        configured(cfg_path=file)
    assert str(caught.value).startswith(f"{file}: ")
    assert expected in str(caught.value)
    assert_short(str(caught.value))
    assert list(tmp_path.iterdir()) == [file]


def test_a_yaml_that_is_not_there_is_named(configured: Make, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "gone.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError) as caught:
            configured(cfg_path=path)
        assert f"{path}: the config can't be read ({reason}" in str(caught.value)


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"program_{name}", PROJECT / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ends_with(
    name: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What the program says before it ends with code 2."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        program(name).main()
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith("error: ")
    assert_short(last)
    return last.removeprefix("error: ")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose_question(file: Path) -> None:
    records = json.loads(file.read_text())
    del next(iter(records.values()))["question"]
    file.write_text(json.dumps(records))


TRAIN = "questions/train_balanced_questions.json"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "questions cut off": (lambda root: truncate(root / TRAIN), f"{TRAIN}: the question file brea"),
    "questions empty": (
        lambda root: (root / TRAIN).write_text(""),
        f"{TRAIN}: the question file i",
    ),
    "a list of numbers": (lambda root: (root / TRAIN).write_text("[1, 2]"), f"{TRAIN}: record 0"),
    "no question": (lambda root: lose_question(root / TRAIN), "has no `question`"),
    "no question file": (
        lambda root: (root / TRAIN).unlink(),
        "no balanced questions of split 'tr",
    ),
    "no image": (lambda root: next(iter((root / "images").iterdir())).unlink(), "of the"),
    "no images": (lambda root: shutil.rmtree(root / "images"), "there is no such image folder"),
    "no data": (shutil.rmtree, "datasets.gqa_fusion.root: there is no folder"),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES)
def test_training_on_a_damaged_data_set_says_what_is_damaged(
    damage: Callable[[Path], object],
    expected: str,
    mini_gqa: Path,
    tiny_arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(mini_gqa, tmp_path / "gqa")
    damage(tmp_path / "gqa")
    arguments = [
        *tiny_arguments,
        f"datasets.gqa_fusion.root={tmp_path / 'gqa'}",
        "run.small_train_size=null",
    ]
    assert expected in ends_with("train", arguments, monkeypatch, capsys)
    assert not (tmp_path / "output").exists()


RUNS: dict[str, tuple[str, list[str], str]] = {
    "a misspelt key": ("train", ["run.max_epochs=3"], "run.max_epochs: there is no such key."),
    "a size of 0": ("train", ["run.small_train_size=0"], "run.small_train_size is 0"),
    "another mini-GQA": ("train", ["datasets.gqa_fusion.mini_gqa.images=50"], "images 40 where 50"),
    "one question": ("train", ["run.small_train_size=1"], "no mismatched question"),
    "nothing to train": ("train", ["run.trainable=[nothing.*]"], "run.trainable"),
    "no such metric": ("train", ["run.metric=f1"], "run.metric"),
    "no objective": (
        "train",
        ["model.objectives.answer=null", "model.objectives.itm=3"],
        "itm is 3",
    ),
    "a split without questions": ("train", ["run.test_splits=[challenge]"], "split 'challenge'"),
    "weights that are not there": (
        "evaluate",
        ["model.fusion_weights=gone.safetensors"],
        "model.fusion_weights: there is no file gone.safetensors.",
    ),
    "no weights": ("evaluate", [], "model.fusion_weights is missing"),
    "weights that are none": (
        "evaluate",
        [f"model.fusion_weights={SMALL}"],
        f"model.fusion_weights: {SMALL} can't be read",
    ),
    "evaluating what was trained on": (
        "evaluate",
        ["run.valid_splits=[train]"],
        "train can't do two",
    ),
}


@pytest.mark.parametrize(("name", "wrong", "expected"), RUNS.values(), ids=RUNS)
def test_a_program_ends_with_the_mistake_and_leaves_no_run_folder(
    name: str,
    wrong: list[str],
    expected: str,
    tiny_arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in ends_with(name, [*tiny_arguments, *wrong], monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gqa_eval", "gqa_small_eval"])
def test_evaluating_without_weights_asks_for_them(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PROJECT / "projects" / "pnp-vqa" / "eval" / f"{name}.yaml"
    arguments = ["--cfg-path", str(path)]
    assert "model.fusion_weights" in ends_with("evaluate", arguments, monkeypatch, capsys)


def test_a_program_of_its_own_ends_with_code_2(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, PROJECT / "train.py", "--cfg-path", SMALL, "--options", "run.amp=maybe"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1] == "error: run.amp is 'maybe'; it must be true or false."
    assert "Traceback" not in found.stderr
    assert not found.stdout
    assert not list(tmp_path.iterdir())
