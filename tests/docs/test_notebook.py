"""The page of the documentation that is a notebook runs, and prints what it shows."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
NOTEBOOK = PROJECT / "docs" / "notebook.ipynb"
RENEW = "make notebook writes what it prints now"


def printed(notebook: Any) -> list[str]:
    """What each cell prints."""
    return [
        "".join(each["text"] for each in cell.outputs if each.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_runs_and_prints_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the notebook tools are not installed (make setup)"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT), prepend=":")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert any(printed(stored)), RENEW
    run = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(run, timeout=250, kernel_name="python3").execute()
    assert printed(run) == printed(stored), RENEW
    shown = [
        output.data
        for cell in run.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output["output_type"] == "execute_result"
    ]
    assert len(shown) == 1
    assert "<svg" in shown[0]["text/html"]
    assert shown[0]["image/png"]
