"""Scalars are read by their key's type, equally in --options and in YAML files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import load_yaml, parse_options
from lavis_ext.config.schema import option
from lavis_ext.config.typed import typed

Read = Callable[[str, str], Any]


@dataclasses.dataclass
class Inner:
    text: str = option("", "A text.")


@dataclasses.dataclass
class Every:
    text: str = option("", "A text.")
    text_or_null: str | None = option(None, "A text.")
    texts: list[str] = option(list, "Texts.")
    by_name: dict[str, str] = option(dict, "Texts by name.")
    inner: Inner = dataclasses.field(default_factory=Inner)
    whole: int = option(0, "A whole number.")
    whole_or_null: int | None = option(None, "A whole number.")
    wholes: list[int] = option(list, "Whole numbers.")
    number: float = option(0.0, "A number.")
    truth: bool = option(False, "A truth value.")
    truth_or_null: bool | None = option(None, "A truth value.")


def by_option(key: str, word: str) -> Any:
    return typed(Every, parse_options([f"x.{key}={word}"]).x, "x")


@pytest.fixture(params=["--options", "YAML"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Read:
    """The typed section with one key given, from options or YAML."""

    def by_file(key: str, word: str) -> Any:
        *sections, name = key.split(".")
        text = "x:\n"
        for depth, section in enumerate(sections, start=1):
            text += f"{' ' * depth}{section}:\n"
        (tmp_path / "c.yaml").write_text(f"{text}{' ' * (len(sections) + 1)}{name}: {word}\n")
        return typed(Every, load_yaml(tmp_path / "c.yaml").x, "x")

    return by_option if request.param == "--options" else by_file


WORDS = [
    *("007", "0123", "1.10", "1e3", "1E3", "yes", "No", "on", "OFF", "y", "TRUE", "True", "true"),
    *("0x1F", "0o17", "0b1", "1_000", "1:30", "12:30:45", "2024-01-01", "2024-99-99", ".inf"),
    *(
        "3",
        "-0",
        "+5",
        "0.50",
        "1.0",
        "1e400",
        "None",
        "nan",
        "inf",
        "=",
        "<<",
        "a#b",
        "12345678901",
    ),
]


@pytest.mark.parametrize("key", ["text", "text_or_null", "by_name.a", "inner.text"])
@pytest.mark.parametrize("word", WORDS)
def test_a_text_is_the_word_as_typed(read: Read, key: str, word: str) -> None:
    found: Any = read(key, word)
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == word


@pytest.mark.parametrize("word", [w for w in WORDS if w != "="])
def test_texts_of_a_list_are_as_typed(read: Read, word: str) -> None:
    assert read("texts", f"[{word}, b]").texts == [word, "b"]


@pytest.mark.parametrize(
    "word", ["/data/x #1", "#1", "key: value", "- x", "@x", "*x", "%x", "`x`", "!x", "? x", "~"]
)
def test_text_options_are_not_parsed_as_yaml(word: str) -> None:
    assert by_option("text_or_null", word).text_or_null == word


@pytest.mark.parametrize("quoted", ["'007'", '"007"'])
def test_quotes_around_a_text_are_not_part_of_it(read: Read, quoted: str) -> None:
    assert read("text", quoted).text == "007"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *(("0042", 42), ("1e3", 1000), ("1.0", 1), ("1_000", 1000), ("+5", 5), ("-3", -3)),
        *(("0x1F", 31), ("017", 17), ("'7'", 7), ("2.5e1", 25)),
    ],
)
def test_whole_numbers_are_read_in_common_notations(read: Read, word: str, value: int) -> None:
    for key in ("whole", "whole_or_null"):
        assert getattr(read(key, word), key) == value
    assert read("wholes", f"[{word}]").wholes == [value]


@pytest.mark.parametrize(
    ("word", "value"), [("0042", 42.0), ("1e-3", 1e-3), ("1E3", 1e3), ("3", 3.0), (".5", 0.5)]
)
def test_numbers_are_read_in_common_notations(read: Read, word: str, value: float) -> None:
    assert read("number", word).number == value


@pytest.mark.parametrize("key", ["truth", "truth_or_null"])
@pytest.mark.parametrize(
    ("word", "value"),
    [
        *((word, True) for word in ("true", "True", "yes", "YES", "on", "y", "1")),
        *((word, False) for word in ("false", "FALSE", "no", "off", "n", "0")),
    ],
)
def test_truth_values_are_read_in_common_notations(
    read: Read, key: str, word: str, value: bool
) -> None:
    assert getattr(read(key, word), key) is value


@pytest.mark.parametrize(
    ("key", "word"),
    [
        *(("truth", word) for word in ("2", "-1", "0.5", "maybe", "02")),
        *(("whole", word) for word in ("1.5", "true", "yes", "1:30", "ten", "1e400", "null")),
        *(("number", word) for word in ("true", "fast", "1:30")),
    ],
)
def test_other_words_are_rejected_by_key(read: Read, key: str, word: str) -> None:
    with pytest.raises(UserError, match=rf"^x\.{key} is "):
        read(key, word)


def test_null_is_null_where_a_key_may_be(read: Read) -> None:
    for key in ("text_or_null", "whole_or_null", "truth_or_null"):
        assert getattr(read(key, "null"), key) is None
        assert getattr(read(key, ""), key) is None
    assert read("whole_or_null", "~").whole_or_null is None
    assert read("text_or_null", "'null'").text_or_null == "null"
