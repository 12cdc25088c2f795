"""The grid's notation, and what is refused before the first run."""

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.sweep.grid import choices_of, parse_grid, planned_runs


def named(*grid: str) -> list[str]:
    return [run.name for run in planned_runs(parse_grid(grid))]


def test_every_combination_is_a_run_with_a_readable_name() -> None:
    assert named("model.fusion.name=difnet,sum", "run.seed=1,2") == [
        "fusion.name=difnet,seed=1",
        "fusion.name=difnet,seed=2",
        "fusion.name=sum,seed=1",
        "fusion.name=sum,seed=2",
    ]


def test_joined_keys_take_their_values_together() -> None:
    runs = planned_runs(parse_grid(["run.small_train_size+run.max_epoch=0.5:10,1.0:5"]))
    assert [run.options for run in runs] == [
        ["run.small_train_size=0.5", "run.max_epoch=10"],
        ["run.small_train_size=1.0", "run.max_epoch=5"],
    ]


def test_commas_and_colons_in_brackets_and_quotes_belong_to_the_value() -> None:
    (axis,) = parse_grid(["run.trainable=['a','b'],null,\"x,y\""])
    assert axis.values == (("['a','b']",), ("null",), ('"x,y"',))
    (axis,) = parse_grid(["model.a+model.b={c: 1, d: 2}:3,4:'5:6'"])
    assert axis.values == (("{c: 1, d: 2}", "3"), ("4", "'5:6'"))


def test_runs_of_one_choice_differ_in_the_seed_alone() -> None:
    runs = planned_runs(parse_grid(["run.init_lr=1e-3,1e-4", "run.seed=1,2,3"]))
    assert [(choice, len(of)) for choice, of in choices_of(runs)] == [
        ({"run.init_lr": "1e-3"}, 3),
        ({"run.init_lr": "1e-4"}, 3),
    ]


def test_values_that_are_no_file_names_get_different_ones() -> None:
    names = named("datasets.d.root=a/b,a_b,a b")
    assert len(set(names)) == 3
    assert not any("/" in name or " " in name for name in names)


def test_equal_ends_of_keys_are_written_out() -> None:
    assert named("run.name2=1", "task.name2=1") == ["run.name2=1,task.name2=1"]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["run.seed"], "isn't of the form KEY=VALUES"),
        (["=1"], "isn't of the form KEY=VALUES"),
        (["run.seed="], "run.seed has no values"),
        (["run.seed=1,,2"], "empty value"),
        (["run.seed=1,1"], "has the value '1' twice"),
        (["run.seed=1", "run.seed=2"], "run.seed is given twice"),
        (["run.seed=1", "run.max_epoch+run.seed=1:2"], "run.seed is given twice"),
        (["run.seed+run.max_epoch=1:2"], "run.seed can't be joined"),
        (["run.max_epoch+run.init_lr=1"], "has 1 value"),
        (["run.name=a,b"], "run.name is set by the sweep"),
    ],
)
def test_an_entry_of_another_form_is_refused(grid: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_grid(grid)
