"""Scene graphs in GQA's format."""

from dataclasses import dataclass
from pathlib import Path

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.pictures import image_id_of
from lavis_ext.datasets.questions.json_records import IMAGE_IDS
from lavis_ext.datasets.questions.record_files import keyed_records

FORMAT = "GQA's scene graphs, an object keyed by image id, or a list of them with `imageId`"


@dataclass(frozen=True, slots=True)
class GraphObject:
    """One object. ``box`` is (x, y, width, height) in pixels of the image.

    ``relations`` are (name, object id), such as ("above", id) if this object is above that one.
    """

    id: str
    name: str
    box: tuple[int, int, int, int]
    attributes: tuple[str, ...]
    relations: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SceneGraph:
    """Scene graph of an image. ``objects`` are in file order; width and height are in pixels."""

    width: int
    height: int
    place: str | None
    weather: str | None
    objects: tuple[GraphObject, ...]


def read_scene_graphs(path: Path) -> dict[str, SceneGraph]:
    """Read scene graphs by image id (GQA: ``train_sceneGraphs.json``).

    Raises UserError naming the file and, if known, the image, for a file that is missing, damaged
    or of another format.
    """
    graphs = {}
    for name, graph in keyed_records(path, "file of scene graphs", FORMAT, IMAGE_IDS):
        image_id = image_id_of(name)
        try:
            graphs[image_id] = _scene_graph(graph)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path}: image {image_id} has no scene graph in GQA's format ({error!r})."
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
