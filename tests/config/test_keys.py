"""The list of every config key, and the search in it."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from lavis_ext import __main__ as program
from lavis_ext.common.errors import UserError
from lavis_ext.config.keys import KINDS, Owner, main, matching, owners
from lavis_ext.config.search import did_you_mean
from lavis_ext.config.typed import typed
from lavis_ext.registry import registered, registry
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.launch import argument_parser

HELPS = {field.name: field.metadata.get("help", "") for field in fields(RunConfig)}


@pytest.fixture(scope="module")
def known() -> list[Owner]:
    return owners()


def found(query: str, known: list[Owner]) -> list[str]:
    return [key.name for owner in matching(query, known) for key in owner.keys or ()]


def test_every_registered_class_and_every_option_is_listed(known: list[Owner]) -> None:
    listed = {(owner.kind, owner.name) for owner in known}
    assert listed == {(kind, name) for kind, names in registered().items() for name in names}
    names = {key.name for owner in known for key in owner.keys or ()}
    assert {f"run.{name}" for name in HELPS} <= names
    assert {"model.fusion.dropout", "model.captioner.sampling.num_captions"} <= names


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("log_every_steps", "run.log_freq"),
        ("log every", "run.log_freq"),
        ("log_freq", "run.log_freq"),
        ("learning rate", "run.init_lr"),
        ("fp16", "run.amp"),
        ("early stopping", "run.patience"),
        ("number of epochs", "run.max_epoch"),
        ("gradient clipping", "run.max_grad_norm"),
        ("beam size", "model.reader.num_beams"),
        ("run.*every_steps", "run.val_every_steps"),
        ("task.", "task.resamples"),
    ],
)
def test_keys_are_found_by_others_words(query: str, expected: str, known: list[Owner]) -> None:
    results = found(query, known)
    assert expected in results if "*" in query or query.endswith(".") else results[0] == expected


def test_a_pattern_finds_only_its_keys(known: list[Owner]) -> None:
    assert all(name.startswith("run.features.") for name in found("run.features.", known))
    assert found("run.max_epoch", known) == ["run.max_epoch"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("log_every_steps", "log_freq"),
        ("log_frq", "log_freq"),
        ("max_epohc", "max_epoch"),
        ("learning_rate", "init_lr"),
        ("workers", "num_workers"),
        ("grad_clip", "max_grad_norm"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(name: str, expected: str) -> None:
    assert did_you_mean(name, HELPS) == f" Did you mean '{expected}'?"


def test_the_error_of_an_unknown_key_proposes_or_lists(known: list[Owner]) -> None:
    with pytest.raises(UserError, match=r"run\.log_every_steps: .* Did you mean 'log_freq'\?"):
        typed(RunConfig, {"log_every_steps": 5}, "run")
    with pytest.raises(UserError, match=r"There are: runner, task, .*python -m lavis_ext keys\."):
        typed(RunConfig, {"zzz": 5}, "run")


def test_the_command_prints_default_meaning_and_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lavis_ext", "keys", "log_every_steps"])
    program.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Runners: trainer"
    (line,) = [line for line in lines if line.startswith("run.log_freq ")]
    assert line.split()[1] == str(RunConfig.log_freq)
    assert line.endswith("Steps between lines of the log. (≥ 1)")
    main([])
    assert capsys.readouterr().out.count("\n") > 300
    with pytest.raises(SystemExit) as ended:
        main(["zzzz"])
    assert ended.value.code == 2
    assert "No config key has the words 'zzzz'" in capsys.readouterr().err


def test_a_class_of_ones_own_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_fusion_keys.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    fusions = "fusion_name_mapping"  # without it again after the test
    monkeypatch.setitem(registry.mapping, fusions, dict(registry.mapping[fusions]))
    main(["knots", "--imports", "my_fusion_keys"])
    out = capsys.readouterr().out
    assert "Fusions: knotted" in out
    assert "model.fusion.knots  3        Knots in a row." in out


OWN = '''
from dataclasses import dataclass
from lavis_ext.config.schema import option
from lavis_ext.fusion.base import FusionConfig, FusionEncoder
from lavis_ext.registry import registry

@dataclass
class KnottedConfig(FusionConfig):
    knots: int = option(3, "Knots in a row.")

@registry.register_fusion("knotted")
class Knotted(FusionEncoder):
    """Knots tokens."""
    Config = KnottedConfig
'''


def test_the_programs_help_names_the_command() -> None:
    assert "python -m lavis_ext keys" in argument_parser("Train.").format_help()


def test_kinds_have_titles() -> None:
    assert KINDS.keys() == registered().keys()
