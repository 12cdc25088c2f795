"""Configs for the fuzzer: shipped YAML files and options, valid or mutated."""

import json
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from omegaconf import OmegaConf

from lavis_ext.config.loader import Config
from tests.fuzzing.mutations import (
    ODD_NUMBERS,
    ODD_TEXTS,
    Raw,
    changed,
    changes,
    damaged,
    deeds,
    written,
)

PROJECT = Path(__file__).parents[2]
YAMLS = sorted((PROJECT / "projects" / "pnp-vqa" / "train").glob("*.yaml"))
WORDS = [
    *(b":", b" ", b"  ", b"\n", b"\t", b"- ", b"- - - ", b"{", b"}", b"[", b"]", b"'", b'"', b"#"),
    *(b"&a ", b"*a", b"<<: ", b"? ", b"|", b">", b"%", b"@", b"!", b"~", b"---\n", b"...\n"),
    *(
        b"!!python/object/apply:os.system [x]",
        b"!!python/name:os.system",
        b"!!binary aGk=",
        b"!!set ",
    ),
    *(b"!!int ", b"!!timestamp 2024-99-99", b"!!float ", b"!!omap ", b"!!null x", b"2024-01-01"),
    *(b"${", b"}", b"${run.seed}", b"${oc.env:HOME}", b"${oc.decode:'[1'}", b"${model}", b"???"),
    *(
        b"\xff",
        b"\x00",
        b"\xef\xbb\xbf",
        b"\xc2\x85",
        b"0x",
        b"0o",
        b"1_0",
        b"1:30",
        b".inf",
        b".nan",
    ),
]
odd_scalars: SearchStrategy[Any] = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_NUMBERS).map(Raw),
    st.sampled_from([word.decode("latin-1") for word in WORDS]).map(Raw),
    st.sampled_from(["1", "0", "3.5", "true", "null", "[]", "{}", "[a]", "{a: 1}"]).map(Raw),
    st.integers(-2, 200).map(lambda number: Raw(str(number))),
)


@cache
def _keys() -> list[str]:
    """All keys of a valid config."""
    config = Config(Namespace(cfg_path=str(PROJECT / YAMLS[0]), options=[]))
    return sorted(_leaves(OmegaConf.to_container(config.config)))


def _leaves(tree: Any, where: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [where]
    inner = [_leaves(value, f"{where}.{key}" if where else key) for key, value in tree.items()]
    return [where or "model", *(key for keys in inner for key in keys)]


@cache
def _trees() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in YAMLS]


@st.composite
def configs(draw: Any) -> tuple[dict[str, bytes], list[str]]:
    """A YAML file and options."""
    number = draw(st.integers(0, len(YAMLS) - 1))
    if draw(st.booleans()):  # JSON is YAML
        content = written(changed(_trees()[number], draw(changes(2, odd_scalars)))).encode(
            "utf-8", "replace"
        )
    else:
        content = YAMLS[number].read_bytes()
    if draw(st.integers(0, 2)) == 0:
        content = damaged(content, draw(deeds(WORDS, 3)), YAMLS[number - 1].read_bytes())
    options = []
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(_keys()))
        value = draw(odd_scalars)
        text = value.text if isinstance(value, Raw) else value
        options.append(f"{key}={text}")
    if draw(st.integers(0, 9)) == 0 and options:
        options[0] = damaged(options[0].encode("utf-8", "replace"), draw(deeds(WORDS, 2))).decode(
            "utf-8", "replace"
        )
    return {"mine.yaml": content}, options


def read_config(folder: Path, options: list[str]) -> None:
    """Read a config as programs do; a valid one survives saving with weights and loading."""
    config = Config(Namespace(cfg_path=str(folder / "mine.yaml"), options=options))
    plain = OmegaConf.to_container(config.config)
    # As stored in weights and states.
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    # As stored in the run's folder: already resolved.
    text = OmegaConf.to_yaml(config.config)
    again = OmegaConf.create(text)
    if "${" not in text and "???" not in text:
        assert OmegaConf.to_container(again) == plain
    for size in (config.run.batch_size_train, config.run.max_epoch):
        assert isinstance(size, int)
        assert size > 0
