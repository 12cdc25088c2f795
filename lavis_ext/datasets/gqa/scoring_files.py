"""Files beside a split's questions that GQA's metrics read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lavis_ext.common.errors import UserError


@dataclass(frozen=True)
class ScoringFiles:
    """Files of one split in GQA's formats; either may be missing.

    Attributes:
        choices: valid and plausible answers by question id.
        scene_graphs: objects with their boxes by image id.
    """

    choices: Path
    scene_graphs: Path


def scoring_files(
    root: Path, split: str, choices: Mapping[str, str], scene_graphs: Mapping[str, str], where: str
) -> ScoringFiles:
    """Find a split's files: the given ones, else those of GQA's layout in ``root``.

    ``where`` is their config key. Raises UserError if a given file is missing.
    """
    found = {}
    for name, given in (("choices", choices), ("sceneGraphs", scene_graphs)):
        path = Path(given.get(split, root / name / f"{split}_{name}.json"))
        if split in given and not path.is_file():
            key = "choices" if name == "choices" else "scene_graphs"
            raise UserError(f"{where}.{key}.{split}: there is no file {path}.")
        found[name] = path
    return ScoringFiles(found["choices"], found["sceneGraphs"])
