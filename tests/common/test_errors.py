"""How programs end: sentences for what a user can mend, tracebacks for bugs."""

import errno
import io
import os
import sys

import pytest

from lavis_ext.common.errors import command


def ended_with(error: BaseException) -> int:
    @command
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_system_refuses_is_a_sentence(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_with(OSError(code, os.strerror(code), "some/file")) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: some/file: {os.strerror(code)}. ")
    assert "Traceback" not in err


def test_other_errors_of_the_system_are_bugs() -> None:
    @command
    def main() -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "some/file")

    with pytest.raises(OSError, match="some/file"):
        main()


def test_text_that_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    @command
    def main() -> None:
        print("≥ \udcff")

    main()
    assert written.getvalue() == b"\\u2265 \\udcff\n"
