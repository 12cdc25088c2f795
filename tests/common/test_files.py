"""Reading of JSON objects."""

from pathlib import Path

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import read_object, required_object


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"[1, 2]", "it isn't a JSON object"),
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
