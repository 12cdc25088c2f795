"""Scene graphs in GQA's format."""

from dataclasses import dataclass
from pathlib import Path

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import parse_json


@dataclass(frozen=True, slots=True)
class GraphObject:
    """One object. ``box`` is (x, y, width, height) in pixels of the image.

    ``relations`` are (name, object id): this object is ``name`` ("above", ...) that one.
    """

    id: str
    name: str
    box: tuple[int, int, int, int]
    attributes: tuple[str, ...]
    relations: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SceneGraph:
    """What is known of one image. ``objects`` are in the file's order; sides are in pixels."""

    width: int
    height: int
    place: str | None
    weather: str | None
    objects: tuple[GraphObject, ...]


def read_scene_graphs(path: Path) -> dict[str, SceneGraph]:
    """Scene graphs by image id (GQA: ``train_sceneGraphs.json``).

    Raises UserError naming the file, and the image where there is one, for a file that is missing,
    damaged or of another shape.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: the scene graphs can't be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"{path}: the scene graphs aren't JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected GQA's scene graphs, an object keyed by image id.")
    graphs = {}
    for image_id, graph in content.items():
        try:
            graphs[image_id] = _scene_graph(graph)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path}: image {image_id} has no scene graph of GQA's form ({error!r})."
            ) from None
    return graphs


def _scene_graph(graph: dict) -> SceneGraph:
    objects = tuple(
        GraphObject(
            id=object_id,
            name=item["name"],
            box=(int(item["x"]), int(item["y"]), int(item["w"]), int(item["h"])),
            attributes=tuple(item["attributes"]),
            relations=tuple((r["name"], r["object"]) for r in item["relations"]),
        )
        for object_id, item in graph["objects"].items()
    )
    width, height = int(graph["width"]), int(graph["height"])
    if width < 1 or height < 1:
        raise ValueError(f"a size of {width}x{height} pixels")
    return SceneGraph(
        width=width,
        height=height,
        place=graph.get("location"),
        weather=graph.get("weather"),
        objects=objects,
    )
