"""Two files of predictions, and the file for GQA's server."""

import json
from pathlib import Path

import numpy as np
import pytest

from lavis_ext.evaluation import compare, leaderboard
from tests.gqa_rule import write_files


@pytest.fixture
def files(mini_gqa: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Questions, imperfect predictions A, and B that is right in every fourth question besides."""
    questions = mini_gqa / "questions" / "train_all_questions.json"
    write_files(questions, mini_gqa / "choices" / "train_choices.json", tmp_path)
    records = json.loads(questions.read_text())
    better = json.loads((tmp_path / "predictions.json").read_text())
    for each in better[::4]:
        each["prediction"] = records[each["questionId"]]["answer"]
    (tmp_path / "better.json").write_text(json.dumps(better))
    return questions, tmp_path / "predictions.json", tmp_path / "better.json"


def compared(tmp_path: Path, a: Path, b: Path, *options: str) -> dict:
    compare.main([str(a), str(b), f"--json={tmp_path / 'c.json'}", *options])
    return json.loads((tmp_path / "c.json").read_text())


def test_differences_have_paired_intervals_and_name_the_questions(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, a, b = files
    comparison = compared(tmp_path, a, b, f"--questions={questions}", "--consistency")
    records = json.loads(questions.read_text())
    answers = [
        {p["questionId"]: p["prediction"] for p in json.loads(path.read_text())} for path in (a, b)
    ]
    balanced = [name for name, record in records.items() if record["isBalanced"]]
    gained = [name for name in balanced if answers[0][name] != answers[1][name]]
    assert [change["id"] for change in comparison["changes"]] == gained
    assert {change["change"] for change in comparison["changes"]} == {"gained"}
    accuracy = comparison["metrics"]["accuracy"]
    assert accuracy["difference"] == pytest.approx(len(gained) / len(balanced))
    assert 0 < accuracy["low"] < accuracy["difference"] < accuracy["high"]
    assert "consistency" in comparison["metrics"]
    by_type = comparison["breakdowns"]["structural"]
    assert set(by_type) == {"choose", "compare", "logical", "query", "verify"}
    printed = capsys.readouterr().out
    assert f"{len(gained)} answered differently" in printed
    assert f"and {len(gained) - 10} more" in printed
    queries = sum(records[name]["types"]["structural"] == "query" for name in gained)
    (line,) = [line for line in printed.splitlines() if "structural query" in line]
    assert line.split()[2:] == [str(queries), "0", "0"]


def test_grounding_is_compared_where_attentions_are_given(
    files: tuple[Path, Path, Path], mini_gqa: Path, tmp_path: Path
) -> None:
    questions, a, b = files
    maps = json.loads((tmp_path / "maps.json").read_text())
    for each in maps:
        each["attention"] = [[value / 2 for value in row] for row in each["attention"]]
    (tmp_path / "half.json").write_text(json.dumps(maps))
    comparison = compared(
        *(tmp_path, a, b, f"--questions={questions}"),
        f"--scenes={mini_gqa / 'sceneGraphs' / 'train_sceneGraphs.json'}",
        *("--attentions", str(tmp_path / "maps.json"), str(tmp_path / "half.json")),
    )
    grounding = comparison["metrics"]["grounding"]
    assert grounding["b"] == pytest.approx(grounding["a"] / 2)
    assert grounding["low"] < grounding["difference"] < grounding["high"] < 0


def test_pairing_makes_intervals_narrower_than_those_of_each(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    questions, a, _ = files
    changed = json.loads(a.read_text())
    records = json.loads(questions.read_text())
    wrong = [p for p in changed if p["prediction"] != records[p["questionId"]]["answer"]]
    for each in wrong[::10]:
        each["prediction"] = records[each["questionId"]]["answer"]
    (tmp_path / "b.json").write_text(json.dumps(changed))
    comparison = compared(tmp_path, a, tmp_path / "b.json", f"--questions={questions}")
    accuracy = comparison["metrics"]["accuracy"]
    single = np.sqrt(0.73 * 0.27 / 463) * 2 * 1.96
    assert accuracy["high"] - accuracy["low"] < 0.6 * single


def test_a_file_does_not_differ_from_itself(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    questions, a, _ = files
    comparison = compared(tmp_path, a, a, f"--questions={questions}")
    assert comparison["changes"] == []
    for difference in comparison["metrics"].values():
        assert (difference["low"], difference["difference"], difference["high"]) == (0, 0, 0)


def test_lost_and_otherwise_wrong_answers_are_distinguished(tmp_path: Path) -> None:
    records = {
        name: {"question": "what?", "imageId": name, "answer": "cup"} for name in ("1", "2", "3")
    }
    (tmp_path / "q.json").write_text(json.dumps(records))
    for name, answers in (("a", ("cup", "mug", "mug")), ("b", ("mug", "cup", "jar"))):
        predictions = [
            {"questionId": i, "prediction": answer}
            for i, answer in zip(records, answers, strict=True)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(predictions))
    comparison = compared(
        tmp_path, tmp_path / "a.json", tmp_path / "b.json", f"--questions={tmp_path / 'q.json'}"
    )
    assert [each["change"] for each in comparison["changes"]] == [
        "lost",
        "gained",
        "otherwise wrong",
    ]


def test_the_servers_file_has_each_question_once_for_any_input_files(
    mini_gqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a split without answers: GQA's submission split holds several others."""
    records = {}
    parts = []
    for split in ("val", "testdev"):
        some = json.loads((mini_gqa / "questions" / f"{split}_all_questions.json").read_text())
        for name, record in some.items():
            records[name] = {key: record[key] for key in ("question", "imageId", "isBalanced")}
        part = tmp_path / f"{split}.json"
        part.write_text(
            json.dumps([{"questionId": i, "prediction": "yes"} for i in reversed(some)])
        )
        parts.append(str(part))
    questions, out = tmp_path / "submission_all_questions.json", tmp_path / "out.json"
    questions.write_text(json.dumps(records))
    leaderboard.main([f"--questions={questions}", "--predictions", *parts, f"--out={out}"])
    written = json.loads(out.read_text())
    assert [each["questionId"] for each in written] == list(records)
    assert all(set(each) == {"questionId", "prediction"} for each in written)
    assert f"{len(records)} questions, each of them once" in capsys.readouterr().out
    twice = ["--predictions", parts[0], parts[0]]
    with pytest.raises(SystemExit):
        leaderboard.main([f"--questions={questions}", *twice, f"--out={out}"])
    assert "predicted more than once" in capsys.readouterr().err
