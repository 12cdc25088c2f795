"""Texts about mini-GQA scenes: true ones are true, and false ones false."""

import random
import re
from pathlib import Path

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.grounded_questions import read_grounded_questions
from lavis_ext.datasets.gqa.scene_graphs import GraphObject, SceneGraph, read_scene_graphs
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.datasets.mini_gqa.vocabulary import FINE, KEY_OF, SHAPES, World
from lavis_ext.pretraining.descriptions import Mention, caption, sentence, value_of
from lavis_ext.pretraining.matching_pairs import fact_pair, matching_pair


@pytest.fixture(scope="module")
def graphs(mini_gqa: Path) -> dict[str, SceneGraph]:
    return read_scene_graphs(mini_gqa / "sceneGraphs" / "train_sceneGraphs.json")


@pytest.fixture(scope="module", params=[SHAPES, FINE], ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    return request.param


@pytest.fixture(scope="module")
def folder(world: World, mini_gqa: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini-GQA of ``world``."""
    if world is SHAPES:
        return mini_gqa
    folder = tmp_path_factory.mktemp("data") / world.name
    make_mini_gqa(folder, images=25, world=world.name)
    return folder


@pytest.fixture(scope="module")
def of_world(folder: Path) -> dict[str, SceneGraph]:
    return read_scene_graphs(folder / "sceneGraphs" / "train_sceneGraphs.json")


def test_captions_of_fine_objects_name_their_parts() -> None:
    gear = GraphObject(
        "1", "gear", (0, 0, 9, 9), ("red", "small", "thin-edged", "five-toothed"), ()
    )
    graph = SceneGraph(256, 256, "sea", "sunny", (gear,))
    text = caption(gear, graph, random.Random(0))
    assert text.startswith("a small thin-edged five-toothed red gear")


def test_captions_have_all_attributes_of_an_object(graphs: dict[str, SceneGraph]) -> None:
    rng = random.Random(0)
    kinds = set()
    for graph in graphs.values():
        for item in graph.objects:
            text = caption(item, graph, rng)
            said = re.match(r"an? (\w+) (\w+) (\w+) (\w+)(.*)", text)
            assert said is not None, text
            assert list(said.groups()[:4]) == [
                value_of(item, key) for key in ("size", "pattern", "color", "name")
            ]
            rest = said[5]
            kinds.add(rest.split()[0] if rest else "")
            if beside := re.fullmatch(r" (.*?) an? (\w+) (\w+)", rest):
                relation, color, name = beside.groups()
                others = [each for each in graph.objects if each.name == name]
                assert any(
                    (relation, each.id) in item.relations and color in each.attributes
                    for each in others
                ) or rest.startswith(f" in a {graph.weather}")
    assert kinds >= {"", "on", "to", "above", "below", "in"}


def test_sentences_are_true(world: World, of_world: dict[str, SceneGraph]) -> None:
    rng = random.Random(0)
    kinds = set()
    for graph in of_world.values():
        for item in graph.objects * 4:
            text = sentence(item, graph, rng)
            if said := re.fullmatch(r"the (.*) is (an? )?([\w-]+)", text):
                assert is_fact(graph, said[1], said[3]), text
                kinds.add("value")
            elif said := re.fullmatch(r"there is an? (.*)", text):
                assert Mention.parse(said[1]).matches(graph), text
                kinds.add("there")
            elif text in (f"it is {graph.weather}",) or text.startswith("the scene is"):
                assert graph.weather in text or graph.place in text
                kinds.add("scene")
            else:
                said = re.fullmatch(r"the (.*?) is .* the (.*)", text)
                assert said is not None, text
                assert Mention.parse(said[1]).matches(graph), text
                assert said[2] == "picture" or Mention.parse(said[2]).matches(graph), text
                kinds.add("place")
    assert kinds == {"value", "there", "scene", "place"}


def is_fact(graph: SceneGraph, about: str, value: str) -> bool:
    return Mention((*Mention.parse(about).values, value)).matches(graph)


def test_false_sentences_differ_in_the_value(world: World, of_world: dict[str, SceneGraph]) -> None:
    rng = random.Random(0)
    for graph in of_world.values():
        for item in graph.objects:
            pair = fact_pair(graph, item, rng, world)
            if pair is None:
                continue
            facts = [re.fullmatch(r"the (.*) is (an? )?([\w-]+)", text) for text in pair]
            (about, _, value), (also, _, other) = (fact.groups() for fact in facts if fact)
            assert about == also
            assert KEY_OF[value] == KEY_OF[other]
            assert is_fact(graph, about, value)
            assert not is_fact(graph, about, other)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("red circle", ("red", "circle")),
        ("large striped shape", ("large", "striped")),
        ("plain curved shape", ("plain", "curved shape")),
        ("star", ("star",)),
    ],
)
def test_a_mention_is_parsed_and_written(words: str, values: tuple[str, ...]) -> None:
    mention = Mention.parse(words)
    assert mention.values == values
    assert mention.words == words


@pytest.mark.parametrize("words", ["shape", "pink circle", ""])
def test_invalid_mentions_are_rejected(words: str) -> None:
    with pytest.raises(ValueError, match="no mention"):
        Mention.parse(words)


def test_mismatched_texts_differ_in_one_word(
    world: World, folder: Path, of_world: dict[str, SceneGraph]
) -> None:
    graphs = of_world
    questions = read_grounded_questions(folder / "questions" / "train_balanced_questions.json")
    rng = random.Random(0)
    asked = 0
    for image_id, graph in graphs.items():
        for _ in range(10):
            true, false = matching_pair(graph, questions.get(image_id, []), rng, world)
            # "an" for "a" is no difference that a model should go by.
            ours, theirs = (re.sub(r"\ban\b", "a", text).split() for text in (true, false))
            different = [
                (a, b) for a, b in zip(ours, theirs, strict=True) if a.strip("?,") != b.strip("?,")
            ]
            assert len(different) == 1, (true, false)
            assert not re.search(r"\ban? (?=[aeio])(?<!an )", false), false
            asked += true.endswith("?")
            if not true.endswith("?"):
                mention = re.sub("^an? ", "", true), re.sub("^an? ", "", false)
                assert Mention.parse(mention[0]).matches(graph)
                assert not Mention.parse(mention[1]).matches(graph)
    assert 0.4 < asked / (10 * len(graphs)) < 0.8


def test_swapped_values_stay_of_their_kind(world: World, of_world: dict[str, SceneGraph]) -> None:
    rng = random.Random(1)
    for graph in of_world.values():
        mention = Mention.draw(rng.choice(graph.objects), rng)
        false = mention.swapped(graph, rng, world)
        assert false is None or [KEY_OF[v] for v in false.values] == [
            KEY_OF[v] for v in mention.values
        ]


def test_files_of_another_shape_are_named(tmp_path: Path) -> None:
    file = tmp_path / "graphs.json"
    with pytest.raises(UserError, match=r"graphs\.json: .*can't be read"):
        read_scene_graphs(file)
    for content, message in (
        ("{", "is cut off at byte 1"),
        ("[]", "keyed by image id"),
        ('{"7": {"width": 3}}', "image 7 has no scene graph"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_scene_graphs(file)
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="keyed by question id"):
        read_grounded_questions(file)
