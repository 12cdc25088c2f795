"""The sweep's page: what is in it, its isolation, and its drawing in a browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.sweep.page import mean_curve
from tests.browser import browser_page, find_browser
from tests.sweep.conftest import Sweep
from tests.sweep.test_sweep import RATES

pytestmark = pytest.mark.beyond_core


def content_of(page: Path) -> Any:
    (found,) = re.findall(r'id="content">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found)


@pytest.fixture
def page(sweep_of: Callable[..., Sweep]) -> Path:
    sweep = sweep_of(RATES, "run.seed=1,2")
    values = {"init_lr=1e-3,seed=1": 0.3, "init_lr=1e-3,seed=2": 0.6, "init_lr=1e-4,seed=1": 0.9}
    error = '</script><script>document.title="broken"</script>'
    sweep.plans(values=values, fail={"init_lr=1e-4,seed=2": error})
    (sweep.path / "runs" / "init_lr=1e-3,seed=1").mkdir(parents=True)
    (sweep.path / "runs" / "init_lr=1e-3,seed=1" / "report.html").touch()
    assert sweep.run() == 1
    return sweep.path / "sweep.html"


def test_it_has_every_runs_curve_and_their_mean(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    addresses = set(re.findall(r"https?://[\w./]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    content = content_of(page)
    charts = {(chart["name"], chart["series"]): chart for chart in content["charts"]}
    chart = charts["answer_accuracy", "val"]
    assert [line["choice"] for line in chart["lines"]] == [0, 0, 1]
    (mean,) = chart["means"]
    assert mean["points"] == [
        [1, pytest.approx(0.15)],
        [2, pytest.approx(0.3)],
        [3, pytest.approx(0.45)],
    ]
    assert ("loss", "train") in charts
    assert [choice["runs"] for choice in content["choices"]] == ["2 of 2", "1 of 2"]
    assert content["choices"][1]["difference"]["over"] == ""
    assert "document.title" in content["runs"][3]["error"]


def test_a_mean_is_at_the_steps_that_all_runs_have() -> None:
    assert mean_curve([[[1, 1.0], [2, 2.0]], [[2, 4.0], [3, 9.0]]]) == [[2, 3.0]]


@pytest.mark.skipif(find_browser() is None, reason="needs a Chromium (LAVIS_EXT_BROWSER)")
def test_a_browser_draws_it_without_a_complaint_and_a_button_hides_a_choice(
    page: Path, tmp_path: Path
) -> None:
    executable = find_browser()
    assert executable is not None
    with browser_page(executable, tmp_path / "profile") as shown:
        for width in (1440, 390):
            shown.open(page, width=width, dark=width == 390)
            shown.wait("document.querySelectorAll('#curves-charts path').length >= 4")
            assert shown.run("document.documentElement.scrollWidth") == width
        rows = "[...document.querySelectorAll('#metrics-table tbody tr')]"
        assert shown.run(f"{rows}.map((row) => row.querySelector('.value').textContent)") == [
            "45.0 %",
            "90.0 %",
        ]
        runs = "[...document.querySelectorAll('#runs-table tbody tr')]"
        linked = shown.run(f"{runs}.map((row) => row.querySelector('a')?.getAttribute('href'))")
        assert linked == ["runs/init_lr%3D1e-3%2Cseed%3D1/report.html", None, None, None]
        lines = "document.querySelectorAll('#curves-charts figure:first-child path').length"
        assert shown.run(lines) == 4, "three runs and a mean"
        shown.run("document.querySelector('#key button').click()")
        shown.wait(f"{lines} === 1")
        assert shown.complaints == []
        assert {each.partition(":")[0] for each in shown.requests} <= {"file", "data"}
