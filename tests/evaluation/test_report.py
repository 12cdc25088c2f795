"""The report: its content, its isolation, and its behavior in a browser."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_ext.common.metrics import Metric, by_name
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.evaluation.gqa.metrics import headline
from lavis_ext.evaluation.gqa.outcomes import judge
from lavis_ext.evaluation.gqa.questions import GqaQuestion
from lavis_ext.evaluation.gqa.reported import reported
from lavis_ext.evaluation.gqa.result import SplitResult, Trace
from lavis_ext.evaluation.gqa.scores import score
from lavis_ext.evaluation.gqa.tables import scores_tables
from lavis_ext.evaluation.report.__main__ import main
from lavis_ext.evaluation.report.confusions import confusions
from lavis_ext.evaluation.report.content import MetricRow, ReportedSplit, report_content
from lavis_ext.evaluation.report.curves import MOST_POINTS, read_curves
from lavis_ext.evaluation.report.page import page, write_report
from lavis_ext.evaluation.report.thumbnails import thumbnails
from tests.browser import Page, browser_page, find_browser
from tests.gqa_rule import write_files

pytestmark = pytest.mark.beyond_core

EXAMPLES = 2000
IMAGES = 150
ANSWERS = ("red", "blue", "green", "yes", "no", "left", "right", "circle")
STRUCTURAL = ("query", "verify", "logical", "choose", "compare")
SEMANTIC = ("attr", "rel", "obj")
NASTY = '</script><script>document.title="broken"</script><img src=x onerror=alert(1)>&amp;"\'<!--'


def result_of(count: int, seed: int = 0) -> tuple[SplitResult, dict[str, str]]:
    """Invented outcomes of ``count`` questions, all shown with traces, and their texts."""
    rng = np.random.default_rng(seed)
    questions = [
        GqaQuestion(
            id=f"{number:08d}",
            image_id=f"image{number % IMAGES}",
            answer=str(rng.choice(ANSWERS)),
            words=int(rng.integers(4, 15)),
            steps=int(rng.integers(1, 6)),
            structural=str(rng.choice(STRUCTURAL)),
            semantic=str(rng.choice(SEMANTIC)),
            detailed=f"detailed{number % 30}",
            group="color",
            entailed=None,
            objects=None,
        )
        for number in range(count)
    ]
    given = {q.id: q.answer if rng.random() < 0.6 else str(rng.choice(ANSWERS)) for q in questions}
    outcomes = judge(questions, given)
    blind = score(judge(questions, dict.fromkeys(given, "yes")), resamples=0)
    traces = {
        q.id: Trace(
            raw=rng.integers(0, 256, (24, 24), dtype=np.uint8),
            refined=rng.integers(0, 256, (32, 32), dtype=np.uint8),
            matching=0.5,
            captions=[f"a caption of some length about a {q.answer} thing {n}" for n in range(10)],
            captions_found=50,
        )
        for q in questions
    }
    scores = score(outcomes, resamples=100)
    texts = {q.id: f"Is this question number {q.id} about a {q.answer} thing?" for q in questions}
    ids = [q.id for q in questions]
    return SplitResult(outcomes, scores, {"form": blind, "overall": blind}, ids, traces), texts


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """Images about as hard to compress as photographs."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        coarse.resize((480, 320), Image.Resampling.BICUBIC).save(folder / f"image{number}.jpg")
    return ImageFolder(folder)


@pytest.fixture(scope="module")
def large(photographs: ImageFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with 2,000 examples, a split more, and the curves of a training run."""
    folder = tmp_path_factory.mktemp("report")
    log = folder / "log.jsonl"
    steps = [{"kind": "train", "step": n, "loss": 3 / n, "lr": 1e-4} for n in range(1, 900)]
    steps += [{"kind": "val", "step": n, "loss": 3.1 / n} for n in (300, 600)]
    log.write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"kind": "tr')
    result, texts = result_of(EXAMPLES)
    other, other_texts = result_of(60, seed=1)
    splits = {
        "testdev": reported("testdev", {"loss": 1.25}, result, texts, photographs),
        "val": reported("val", {}, other, other_texts, photographs),
        "pointing": ReportedSplit(
            {"pointing_accuracy": 0.5, "loss": 1.25},
            {"pointing_accuracy": Metric("pointing_accuracy", "share")},
        ),
    }
    path = folder / "report.html"
    write_report(path, report_content("a run", {"task": "tests"}, splits, log))
    return path


def content_of(path: Path) -> Any:
    (found,) = re.findall(r'id="content">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found)


def test_the_page_is_one_file_of_bounded_size_that_refers_to_nothing_else(large: Path) -> None:
    text = large.read_text()
    assert len(text) < 25 * 2**20
    assert "default-src 'none'" in text
    outside = re.sub(r'id="content">.*?</script>', "", text, flags=re.DOTALL)
    found = re.findall(r"(?:src|href)\s*=\s*[\"'](.*?)[\"']|url\((.*?)\)|@import", outside)
    assert {a or b for a, b in found} == {"data:,", "#examples"}
    addresses = set(re.findall(r"https?://[\w./]+", outside))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a name, not something to fetch"


def test_thumbnails_share_a_limit_and_an_unreadable_image_is_left_out(
    photographs: ImageFolder, tmp_path: Path
) -> None:
    names = [f"image{n}" for n in range(20)]
    roomy = thumbnails(photographs, names)
    tight = thumbnails(photographs, names, limit=60_000)
    assert roomy.keys() == tight.keys() == set(names)
    assert sum(map(len, tight.values())) <= 60_000 < sum(map(len, roomy.values()))
    (tmp_path / "broken.jpg").write_bytes(b"")
    assert thumbnails(ImageFolder(tmp_path), ["broken"]) == {}


def test_texts_from_data_cannot_leave_the_json(tmp_path: Path) -> None:
    result, _ = result_of(1)
    (question,) = result.shown
    split = reported("val", {NASTY: 1.0}, result, {question: NASTY}, None)
    html = page(report_content(NASTY, {NASTY: NASTY}, {NASTY: split}))
    assert html.count("<script") == 2
    assert html.count("</script>") == 2
    assert NASTY not in html
    path = tmp_path / "report.html"
    path.write_text(html)
    assert content_of(path)["splits"][0]["examples"][0]["question"] == NASTY


def test_values_that_are_no_numbers_are_left_empty() -> None:
    """An interval is NaN where no resample has such a question."""
    result, texts = result_of(3)
    score_of_all = result.scores.metrics["accuracy"]
    object.__setattr__(score_of_all, "low", float("nan"))
    content = report_content("a", {}, {"val": reported("val", {}, result, texts, None)})
    assert content["splits"][0]["metrics"][0]["low"] is None
    page(content)


def test_confusions_are_counted_most_frequent_first() -> None:
    found = confusions(
        ["red", "red", "red", "blue", "yes", "no"], ["blue", "blue", "red", "red", "yes", "yes"]
    )
    assert list(found.pairs) == [("red", "blue", 2), ("blue", "red", 1), ("no", "yes", 1)]
    assert list(found.answers) == ["blue", "red", "no", "yes"]
    assert found.counts[1][0] == 2, "red was right, blue was given"
    assert found.counts[1][1] == 1
    assert confusions(["a"], ["a"]).answers == []


def test_curves_come_from_the_log_and_the_last_line_of_a_step_counts(large: Path) -> None:
    charts = {chart["name"]: chart for chart in read_curves(large.parent / "log.jsonl")}
    assert list(charts) == ["loss", "lr"]
    assert len(charts["loss"]["series"]["train"]) <= MOST_POINTS
    assert charts["loss"]["series"]["val"] == [[300, 3.1 / 300], [600, 3.1 / 600]]
    log = large.parent / "resumed.jsonl"
    lines = [{"kind": "train", "step": 1, "loss": 2.0}, {"kind": "train", "step": 1, "loss": 1.0}]
    log.write_text("\n".join(map(json.dumps, lines)))
    assert read_curves(log)[0]["series"] == {"train": [[1, 1.0]]}
    assert read_curves(large.parent / "none.jsonl") == []


def log_of(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_curves_are_the_loss_the_selecting_metric_and_the_other_declared_ones(
    tmp_path: Path,
) -> None:
    rows = [["loss", "", "min"], ["top5", "share", "max"], ["top1", "share", "max"]]
    values = {"time": 1.0, "epoch": 0, "loss": 2.0, "lr": 0.1, "top1": 0.5, "top5": 0.7, "x": 3.0}
    declared = {"kind": "declared", "step": 0, "metrics": rows}
    steps = [{"kind": "train", "step": step, **values} for step in (1, 2)]
    charts = read_curves(log_of(tmp_path / "log.jsonl", declared, *steps), metric="top1")
    assert [(chart["name"], chart["unit"]) for chart in charts] == [
        ("loss", ""),
        ("top1", "share"),
        ("top5", "share"),
        ("lr", ""),
    ], "what isn't declared, x, has no chart"
    older = log_of(tmp_path / "older.jsonl", *steps)
    named = {"top1": Metric("top1", "share")}
    units = {chart["name"]: chart["unit"] for chart in read_curves(older, named)}
    assert units == {"loss": "", "lr": "", "top1": "share", "top5": "", "x": ""}


def test_a_declaration_of_another_form_is_passed_over(tmp_path: Path) -> None:
    wrong = [{"metrics": 1}, {"metrics": [["loss"], [1, 2, 3], None]}, {}]
    entries = [{"kind": "declared", "step": 0, **each} for each in wrong]
    log = log_of(tmp_path / "log.jsonl", *entries, {"kind": "train", "step": 1, "loss": 1.0})
    assert [chart["name"] for chart in read_curves(log)] == ["loss"]


def test_a_single_validation_is_a_point_and_a_tested_split_has_none(tmp_path: Path) -> None:
    train = [{"kind": "train", "step": step, "loss": 2.0} for step in (1, 2)]
    first = {"kind": "val", "step": 2, "loss": 1.5}
    running = log_of(tmp_path / "running.jsonl", *train, first)
    assert read_curves(running)[0]["series"]["val"] == [[2, 1.5]]
    last = [{**first, "loss": 1.4}, {"kind": "testdev", "step": 2, "loss": 1.0}]
    ended = log_of(tmp_path / "ended.jsonl", *train, first, *last)
    assert read_curves(ended)[0]["series"].keys() == {"train", "val"}
    assert read_curves(ended)[0]["series"]["val"] == [[2, 1.4]]


def test_different_pictures_come_first(photographs: ImageFolder) -> None:
    result, texts = result_of(2 * IMAGES)
    shown = sorted(result.shown, key=lambda each: int(each) % IMAGES)  # two of an image in a row
    result = SplitResult(result.outcomes, result.scores, shown=shown)
    content = report_content("a", {}, {"val": reported("val", {}, result, texts, None)})
    pictures = [example["image"] for example in content["splits"][0]["examples"]]
    assert len(set(pictures[:IMAGES])) == IMAGES
    assert sorted(pictures[:IMAGES]) == sorted(pictures[IMAGES:])


def test_the_table_rounds_as_the_headline_does() -> None:
    """JavaScript would show 72.25 % as 72.3, Python shows 72.2."""
    row = MetricRow(Metric("answer_accuracy", "share"), 0.7225, 400, 0.6825, 0.7625, {"form": 0.25})
    split = ReportedSplit({}, rows=[row], headline=headline("val", ALMOST))
    (shown,) = report_content("a", {}, {"val": split})["splits"][0]["metrics"]
    assert shown["shown"]["value"] in split.headline
    assert "47.2 points above" in split.headline
    assert shown["shown"]["interval"] == "68.2 % to 76.2 %"
    assert shown["shown"]["baselines"] == {"form": "25.0 %"}


ALMOST = {"answer_accuracy": 0.7225, "baseline_form": 0.25, "baseline_overall": 0.1}


def test_a_metric_above_100_percent_is_explained() -> None:
    result, texts = result_of(3)
    twice = judge(
        result.outcomes.questions,
        dict.fromkeys(texts, "red"),
        grounding=dict.fromkeys(texts, 1.5),
    )
    for outcomes, explained in ((twice, True), (result.outcomes, False)):
        scored = SplitResult(outcomes, score(outcomes, resamples=0), shown=[])
        note = reported("val", {}, scored, texts, None).note
        assert ("Grounding can exceed 100 %" in note) == explained
        assert any("can exceed" in str(part) for part in scores_tables(scored.scores)) == explained


def test_a_blind_guess_is_drawn_in_the_chart_of_accuracy(tmp_path: Path) -> None:
    result, texts = result_of(3)
    entries: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "answer_accuracy": 0.5} for step in (1, 2)
    ]
    entries += [
        {"kind": "val", "step": step, "answer_accuracy": 0.4, "baseline_form": 0.3}
        for step in (1, 2)
    ]
    log = log_of(tmp_path / "log.jsonl", *entries)
    split = reported("val", {}, result, texts, None)
    (chart,) = report_content("a run", {}, {"val": split}, log)["curves"]
    assert chart["unit"] == "share"
    assert chart["series"]["baseline, by form"] == [[1, 0.3], [2, 0.3]]
    assert chart["overlaid"] == ["baseline, by form"]


def classified(photographs: ImageFolder) -> ReportedSplit:
    """The split of an image classifier: no questions, no intervals, no heat maps."""
    declared = [Metric("loss", better="min"), Metric("top1", "share"), Metric("ece", "percent")]
    examples = [
        {
            "id": f"image{number}",
            "image": f"image{number}",
            "prediction": "cat" if number % 3 else "dog",
            "answer": "cat",
        }
        for number in range(9)
    ]
    return ReportedSplit(
        {"loss": 0.25, "top1": 0.875, "ece": 3.5},
        by_name(declared),
        note="9 images of two classes.",
        headline="8 of 9 are right",
        examples=examples,
        images=photographs,
        extra={"noun": "image", "count": 90},
    )


def test_a_task_without_questions_has_a_page(photographs: ImageFolder) -> None:
    content = report_content("classes", {}, {"test": classified(photographs)})
    (split,) = content["splits"]
    assert [(row["name"], row["value"]) for row in split["metrics"]] == [("top1", 0.875)]
    assert split["others"] == [["loss", "0.2500"], ["ece", "3.5 %"]]
    assert content["images"].keys() == {f"image{number}" for number in range(9)}
    assert content["heatColors"] == []
    assert split["breakdowns"] == []
    bare = report_content("loss alone", {}, {"val": ReportedSplit({"loss": 1.0})})
    assert bare["splits"][0]["metrics"] == []
    page(bare)


def test_the_command_writes_the_page_of_anyones_predictions(
    mini_gqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = mini_gqa / "questions" / "val_all_questions.json"
    choices = mini_gqa / "choices" / "val_choices.json"
    write_files(questions, choices, tmp_path)
    out = tmp_path / "page.html"
    arguments = [
        *("--questions", str(questions), "--choices", str(choices), "--consistency"),
        *("--predictions", str(tmp_path / "predictions.json"), "--out", str(out)),
        *("--images", str(mini_gqa / "images"), "--examples", "5", "--resamples", "100"),
    ]
    main(arguments)
    (split,) = content_of(out)["splits"]
    assert len(split["examples"]) == 5
    assert all(example["question"].endswith(("?", ".")) for example in split["examples"])
    assert {example["image"] for example in split["examples"]} == content_of(out)["images"].keys()
    by_name = {metric["name"]: metric for metric in split["metrics"]}
    assert by_name["consistency"]["low"] < by_name["consistency"]["value"]
    assert "attentions" in by_name["grounding"]["reason"]
    with pytest.raises(SystemExit):
        main([*arguments[:-6], "--out", str(tmp_path / "none" / "page.html")])
    assert "there is no folder" in capsys.readouterr().err


# In a browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium here: install one, or name it in LAVIS_EXT_BROWSER")
    with browser_page(executable, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(browser: Page, large: Path) -> Iterator[Page]:
    """The large report on a wide screen; a test that uses it ends without complaints."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(large)
    browser.wait("document.querySelectorAll('.card').length > 0")
    yield browser
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


CARDS = "document.querySelectorAll('.card').length"
COUNT = "document.getElementById('count').textContent"


def choose(page: Page, control: str, value: str) -> float:
    """Set a filter as a user does; milliseconds until the page has taken it in and is drawn."""
    return float(
        page.run(
            f"""(async () => {{
                const control = {control};
                const started = performance.now();
                if (control.type === 'radio') control.checked = true;
                else control.value = {json.dumps(value)};
                control.dispatchEvent(new Event('input', {{bubbles: true}}));
                await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
                return performance.now() - started;
            }})()"""
        )
    )


def test_it_loads_with_its_sections_and_plots(opened: Page) -> None:
    opened.wait("document.querySelectorAll('#kinds-charts svg').length === 4")
    opened.wait("document.querySelectorAll('#curves-charts svg').length >= 2")
    assert opened.run("document.querySelectorAll('#metrics-table tbody tr').length") == 6
    assert "not computed" in opened.run("document.getElementById('metrics-table').textContent")
    assert f"{EXAMPLES:,} of {EXAMPLES:,} examples" in opened.run(COUNT)
    assert opened.run(CARDS) < EXAMPLES / 4, "cards are made as they come into view"
    assert opened.run("document.querySelector('.card img').naturalWidth") > 0
    assert opened.run("document.querySelectorAll('.card canvas').length") > 0


def test_filters_work_quickly_among_2000_examples(opened: Page, large: Path) -> None:
    examples = content_of(large)["splits"][0]["examples"]
    wrong = [e for e in examples if e["answer"] != e["prediction"]]
    query = [e for e in wrong if e["structural"] == "query"]
    relations = [e for e in query if e["semantic"] == "rel"]
    named = [e for e in relations if "7" in e["id"] + e["image"]]
    times = []
    for control, value, left in (
        ("document.querySelector('#outcome input[value=wrong]')", "wrong", wrong),
        ("document.getElementById('structural')", "query", query),
        ("document.getElementById('semantic')", "rel", relations),
        ("document.getElementById('search')", "thing 7", named),
        ("document.getElementById('search')", "no such words", []),
    ):
        times.append(choose(opened, control, value))
        assert opened.run(COUNT).startswith(f"{len(left):,} of")
        assert opened.run("document.querySelectorAll('.card.right').length") == 0
    opened.run("document.querySelector('#filters button[type=reset]').click()")
    opened.wait(f"{COUNT}.startsWith('2,000 of')")
    assert min(times) < 500, times  # a busy machine may hold up some


def test_all_examples_can_be_reached(opened: Page) -> None:
    choose(opened, "document.getElementById('structural')", "query")
    count = int(opened.run(COUNT).split(" ")[0].replace(",", ""))
    opened.run(
        "(() => { const more = document.getElementById('more');"
        " while (!more.hidden) more.click(); })()"
    )
    assert opened.run(CARDS) == count > 200


def test_a_confusion_shows_its_examples(opened: Page) -> None:
    opened.run("document.querySelector('#pairs button').click()")
    count = opened.run("document.querySelector('#pairs button').textContent")
    assert opened.run(COUNT).startswith(f"{count} of")
    opened.run("document.getElementById('pair').click()")
    assert opened.run(COUNT).startswith("2,000 of")


def test_confusions_without_examples_point_to_none(
    browser: Page, photographs: ImageFolder, tmp_path: Path
) -> None:
    """As in the page of a training that goes on."""
    result, texts = result_of(60)
    split = replace(reported("val", {}, result, texts, photographs), examples=[])
    path = tmp_path / "report.html"
    write_report(path, report_content("a run", {}, {"val": split}))
    browser.open(path)
    browser.wait("document.querySelector('#pairs button') !== null")
    assert browser.run("document.querySelectorAll('#confusions button:not(:disabled)').length") == 0
    assert "examples" not in browser.run("document.getElementById('confusions').innerText")


def test_it_can_be_used_with_the_keyboard_alone(opened: Page) -> None:
    opened.run("document.querySelector('#outcome input').focus()")
    opened.press("ArrowRight")
    opened.wait(f"!{COUNT}.startsWith('2,000 of')")
    assert opened.run("document.querySelectorAll('.card.wrong').length") == 0, "right alone"
    opened.run("document.querySelector('.card .panels').focus()")
    opened.press("Enter")
    opened.wait("document.getElementById('enlarged').open")
    opened.press("ArrowRight")
    opened.wait("document.getElementById('place').textContent.startsWith('2 of')")
    opened.press("Escape")
    opened.wait("!document.getElementById('enlarged').open")
    assert opened.run("document.activeElement.className") == "panels", "back where it was"


def test_another_split_is_shown(opened: Page) -> None:
    opened.run("document.querySelector('#splits button[value=val]').click()")
    assert opened.run(COUNT).startswith("60 of 60")
    opened.run("document.querySelector('#splits button[value=pointing]').click()")
    assert opened.run("document.getElementById('examples').hidden")
    assert "50.0 %" in opened.run("document.getElementById('metrics-table').textContent")
    assert "1.2500" in opened.run("document.getElementById('others-list').textContent")
    assert opened.run("document.getElementById('kinds').hidden")


def test_the_confusion_matrix_scrolls_on_a_phone_and_its_answers_stay(
    browser: Page, large: Path
) -> None:
    browser.open(large, width=390)
    browser.wait(f"{CARDS} > 0")
    matrix = "document.getElementById('matrix')"
    answer = f"{matrix}.querySelector('tbody th').getBoundingClientRect().left"
    assert browser.run(f"{matrix}.scrollWidth > {matrix}.clientWidth + 20")
    assert browser.run(f"{matrix}.classList.contains('more')"), "nothing shows that it goes on"
    before = browser.run(answer)
    browser.run(f"{matrix}.scrollLeft = 1000")
    browser.wait(f"!{matrix}.classList.contains('more')")
    assert browser.run(answer) == before
    assert browser.run("document.documentElement.scrollWidth") <= 390


def test_a_card_of_one_picture_is_filled(
    browser: Page, photographs: ImageFolder, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    write_report(path, report_content("classes", {}, {"test": classified(photographs)}))
    browser.open(path)
    browser.wait(f"{CARDS} === 9")
    box = "document.querySelector('.card {}').getBoundingClientRect().{}"
    left, right = (browser.run(box.format("img", side)) for side in ("left", "right"))
    assert right - left > 100
    assert right < browser.run(box.format("h3", "left")), "the text stands beside the picture"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_the_screen_light_and_dark(
    browser: Page, large: Path, width: int, dark: bool
) -> None:
    browser.open(large, width=width, dark=dark)
    browser.wait(f"{CARDS} > 0")
    assert browser.run("document.documentElement.scrollWidth") <= width
    colors = "getComputedStyle(document.body)"
    lightness = [
        sum(map(int, re.findall(r"\d+", browser.run(f"{colors}.{name}"))[:3]))
        for name in ("backgroundColor", "color")
    ]
    assert (lightness[0] < lightness[1]) == dark
    assert abs(lightness[0] - lightness[1]) > 450, "text stands out from the page"


def test_texts_from_data_are_shown_and_never_run(browser: Page, tmp_path: Path) -> None:
    result, _ = result_of(1)
    (shown,) = result.shown
    trace = result.traces[shown]
    hostile = Trace(trace.raw, trace.refined, 0.5, [NASTY], 1)
    result = SplitResult(
        result.outcomes, result.scores, result.baselines, result.shown, {shown: hostile}
    )
    split = reported("val", {NASTY: 1.0}, result, {shown: NASTY}, None)
    path = tmp_path / "report.html"
    write_report(path, report_content("title", {NASTY: NASTY}, {"val": split}))
    browser.complaints.clear()
    browser.open(path)
    browser.wait(f"{CARDS} === 1")
    assert browser.run("document.title") == "title"
    assert browser.run("document.querySelector('.card h3').textContent") == NASTY
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('[onerror]').length") == 0
    assert browser.complaints == []


def test_the_page_of_a_classifier_mentions_no_questions(
    browser: Page, photographs: ImageFolder, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    write_report(path, report_content("classes", {}, {"test": classified(photographs)}))
    browser.complaints.clear()
    browser.open(path)
    browser.wait(f"{CARDS} === 9")
    words = browser.run("document.body.innerText").lower()
    assert "question" not in words
    assert "heat" not in words
    assert "baseline" not in words
    assert "drawn at random from 90 images" in words
    assert browser.run("document.querySelectorAll('.card.wrong').length") == 3
    assert browser.run("document.querySelector('.card h3').textContent") == "Image image0"
    assert "dog (wrong)" in browser.run("document.querySelector('.card').textContent")
    assert browser.run("document.querySelectorAll('label.kind').length") == 0
    assert "question" not in browser.run("document.getElementById('search').placeholder")
    choose(browser, "document.querySelector('#outcome input[value=wrong]')", "wrong")
    assert browser.run(COUNT).startswith("3 of 9 examples")
    assert browser.complaints == []
