"""Images inside Parquet tables, as the hub's ``datasets`` library saves them."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from itertools import chain
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lavis_ext.common.errors import UserError, listed
from lavis_ext.datasets.image_files.base import (
    Bytes,
    ImageFiles,
    check_size,
    damage_reported,
    unreadable,
    unreadable_reported,
)

GROUPS_KEPT = 2
"""Decoded row groups in memory; an image can only be read with the others of its group."""
MOST_BYTES_A_GROUP = 2**30
BYTES, PATH = "bytes", "path"
"""Fields of an image column."""


class ParquetFiles(ImageFiles):
    """Images of a table's column, binary or with the fields ``bytes`` and ``path``.

    An image's name is ``TABLE/ROW.jpg``: the file's name without suffix, and the row from 0. It
    also has the name in ``path``, if no other row has that.

    Raises UserError for a damaged table, or one without such a column.
    """

    def __init__(self, source: Bytes) -> None:
        self.place, self.version = source.place, source.version
        self._source = source
        self._groups: OrderedDict[int, pa.Array] = OrderedDict()
        self._file: pq.ParquetFile | None = None
        with damage_reported(self.place, "Parquet file"):
            metadata = self._opened().metadata
            sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
            self._ends = np.cumsum(sizes, dtype=np.int64)
            self._column, has_path = self._image_column()
            paths = self._read_paths() if has_path else []
        self._rows = {row_name(self.place, row): row for row in range(sum(sizes))}
        counts = Counter(paths)
        self._paths = {p: row for row, p in enumerate(paths) if p and counts[p] == 1}

    def names(self) -> Iterator[str]:
        """Names of all rows, and their paths."""
        return chain(self._rows, self._paths.keys() - self._rows.keys())

    def is_second_name(self, name: str) -> bool:
        """Whether it is a path."""
        return name not in self._rows

    def size(self, name: str) -> int | None:
        """None: only reading tells."""
        return None

    def read(self, name: str) -> bytes:
        """Content of a row's image; reads its row group."""
        row = self._rows[name] if name in self._rows else self._paths[name]
        number = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        with unreadable_reported(self.place, name):
            found = self._group(number)[row - start].as_py()
        content = found.get(BYTES) if isinstance(found, dict) else found
        if content is None:
            raise unreadable(self.place, name, "the table has no bytes for it")
        check_size(self.place, name, len(content))
        return bytes(content)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_groups": OrderedDict()}

    def _group(self, number: int) -> pa.Array:
        if number in self._groups:
            self._groups.move_to_end(number)
            return self._groups[number]
        size = self._opened().metadata.row_group(number).total_byte_size
        if size > MOST_BYTES_A_GROUP:
            raise UserError(
                f"{self.place}: a row group of {size:,} bytes is too large to read single images "
                "from. Write the table again with a row_group_size of about 100."
            )
        read = self._opened().read_row_group(number, columns=[self._column], use_threads=False)
        self._groups[number] = read[self._column].combine_chunks()
        while len(self._groups) > GROUPS_KEPT:
            self._groups.popitem(last=False)
        return self._groups[number]

    def _image_column(self) -> tuple[str, bool]:
        """Name of the image column, and whether it has paths."""
        found = {}
        for field in self._opened().schema_arrow:
            kind = field.type
            if holds_images(kind):
                found[field.name] = _has_paths(kind)
        chosen = "image" if "image" in found else next(iter(found), None)
        if chosen is None or (len(found) > 1 and chosen != "image"):
            which = f"several ({listed([*found])})" if found else "none"
            raise UserError(
                f"{self.place}: images must be in one column of bytes, or one named image; the "
                f"table has {which}."
            )
        return chosen, found[chosen]

    def _read_paths(self) -> list[str | None]:
        column = f"{self._column}.{PATH}"
        read = self._opened().read(columns=[column], use_threads=False)[self._column]
        paths: list[str | None] = [each and each[PATH] for each in read.to_pylist()]
        return paths

    def _opened(self) -> pq.ParquetFile:
        if self._file is None:
            self._file = pq.ParquetFile(
                self._source.as_file(), pre_buffer=False, page_checksum_verification=True
            )
        return self._file


def row_name(place: str, row: int) -> str:
    """Name of the image in a row of a table."""
    return f"{PurePath(place).stem}/{row}.jpg"


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: bytes, or a struct with them."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index(BYTES)
        return place >= 0 and holds_images(kind.field(place).type)
    if pa.types.is_dictionary(kind):
        return holds_images(kind.value_type)
    kinds = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view
    return any(each(kind) for each in (*kinds, pa.types.is_fixed_size_binary))


def _has_paths(kind: pa.DataType) -> bool:
    place = kind.get_field_index(PATH) if pa.types.is_struct(kind) else -1
    return place >= 0 and any(
        each(kind.field(place).type)
        for each in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )
