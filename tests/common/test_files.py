"""Files are written whole or not at all, nothing but files is replaced, and objects are read."""

import errno
import os
from pathlib import Path

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import (
    read_object,
    real_path,
    required_object,
    write_json,
    written_aside,
)


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="a named pipe, not a file"):
        write_json(pipe, {})
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "full.json"
    with pytest.raises(OSError, match="No space left") as raised, written_aside(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as writing raises it
    assert raised.value.filename == str(path)
    path = tmp_path / "none" / "x.json"
    with pytest.raises(FileNotFoundError) as raised:
        write_json(path, {})
    assert raised.value.filename == str(path)


def test_a_cycle_of_links_has_a_path(tmp_path: Path) -> None:
    for name, target in (("a", "b"), ("b", "a")):
        (tmp_path / name).symlink_to(target)
    assert real_path(tmp_path / "a").parent == tmp_path.resolve()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"[1, 2]", "no JSON object"),
        (b'{"a": 1', "Expecting"),
        (b'{"\xff": 1}', "codec can't decode"),
        (b'{"a":' * 9999, "nested too deeply"),
    ],
)
def test_what_is_no_json_object_is_none_or_an_error_with_the_reason(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "facts.json"
    if content is not None:
        path.write_bytes(content)
    assert read_object(path) is None
    with pytest.raises(UserError, match=f"facts.json can't be read .*{reason}"):
        required_object(path)


def test_a_json_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('{"a": [1]}')
    assert read_object(path) == required_object(path) == {"a": [1]}
