"""The files needed by a run and its evaluation: found, cached, to be downloaded or missing."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.checkpoints.sources import FOUND, MISSING, TO_FETCH, Asked, Located, locate, resolve
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import size_in_words
from lavis_ext.common.tables import Table, table


@dataclass(frozen=True)
class Need:
    """A file or folder named in a config.

    Attributes:
        key: the config key.
        located: location and state of the file.
        fetch: downloads it; None if it can't be downloaded automatically.
        later: whether only an evaluation needs it, not this run.
        error: error message if it's missing.
    """

    key: str
    located: Located
    fetch: Callable[[], Any] | None = None
    later: bool = False
    error: str = ""

    @property
    def missing(self) -> bool:
        """Whether it is neither on this machine nor downloadable."""
        return self.located.state == MISSING


def weights_needed(section: Any, where: str, later: Sequence[str] = ()) -> list[Need]:
    """Weights and tokenizers named in a typed section's options with ``files``.

    Args:
        section: an instance of a dataclass of options.
        where: the section's key, such as ``model``.
        later: names of parts that only an evaluation needs.

    A config's method ``file_source(field)`` returns the source for a value that isn't one, such as
    timm's ``pretrained``.
    """
    found = []
    asked = Asked()
    for key, source, filenames in weight_sources(section, where):
        is_later = any(key.startswith(f"{where}.{part}.") for part in later)
        fetch = _fetching(source, key, filenames)
        located = locate(source, key=key, filenames=filenames, asked=asked)
        found.append(Need(key, located, fetch, is_later, f"{key}: {located.place}"))
    return found


def data_needed(
    key: str, find: Callable[[], Path | str], fetch: Callable[[], Any] | None = None
) -> Need:
    """A data file, folder or address from ``find``, which raises UserError if there is none."""
    try:
        place = find()
    except UserError as error:
        return Need(key, Located(MISSING, str(error)), fetch, error=str(error))
    size = place.stat().st_size if isinstance(place, Path) and place.is_file() else None
    return Need(key, Located(FOUND, str(place), size))


def needs_table(needs: Iterable[Need]) -> Table:
    """Table with each need's key, state, size and place."""
    rows = [
        (
            need.key,
            need.located.state + (" (evaluation)" if need.later else ""),
            size_in_words(need.located.size) if need.located.size is not None else "",
            need.located.place,
        )
        for need in needs
    ]
    return table(rows, ("needed", "state", "size", "place"))


def check_needs(needs: Sequence[Need], *, config: str = "CONFIG.yaml", later: bool = False) -> None:
    """Raise UserError listing every needed file that is missing.

    ``config`` is the path of the config that needs them; ``later`` includes files that only an
    evaluation needs.
    """
    missing = [need for need in needs if need.missing and (later or not need.later)]
    if missing:
        reasons = list(dict.fromkeys(need.error for need in missing))
        if len(reasons) == 1:
            raise UserError(reasons[0])
        lines = "\n  ".join(reasons)
        raise UserError(
            f"{len(missing)} of the {len(needs)} files that this run needs are missing:\n  {lines}"
            "\nSet these keys to local copies, or download the files on a machine with a network: "
            f"python -m lavis_ext fetch --cfg-path {config} --to FOLDER."
        )


def to_fetch(needs: Iterable[Need]) -> list[Need]:
    """Needs that can be downloaded, one per place."""
    states = TO_FETCH, MISSING
    wanted = {n.located.place: n for n in needs if n.located.state in states and n.fetch}
    return list(wanted.values())


def _fetching(source: str, key: str, filenames: Sequence[str]) -> Callable[[], Any]:
    return lambda: resolve(source, key=key, filenames=filenames)


def weight_sources(section: Any, where: str) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Key, source and file names of each non-null option with ``files``.

    A config's method ``unused_sections()`` names options of which it needs no files.
    """
    unused = section.unused_sections() if hasattr(section, "unused_sections") else ()
    for field in dataclasses.fields(section):
        if field.name in unused:
            continue
        value, key = getattr(section, field.name), f"{where}.{field.name}"
        if filenames := field.metadata.get("files"):
            source = value
            if hasattr(section, "file_source"):
                source = section.file_source(field.name)
            if source is not None:
                yield key, str(source), filenames
        elif dataclasses.is_dataclass(value):
            yield from weight_sources(value, key)
        elif isinstance(value, Mapping):
            for name, part in value.items():
                if dataclasses.is_dataclass(part):
                    yield from weight_sources(part, f"{key}.{name}")
