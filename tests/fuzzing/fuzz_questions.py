"""Question files for the fuzzer: one file or shards, GQA's or LAVIS's format, valid or mutated."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.datasets.questions import conversion as question_conversion
from lavis_ext.datasets.questions import json_records
from lavis_ext.datasets.questions import store as question_store
from lavis_ext.datasets.questions.mismatched import MismatchedQuestions
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.evaluation.gqa.questions import answers_of, balanced_questions, entailed_ids
from tests.fuzzing.mutations import Raw, changed, changes, damaged, deeds, odd_values, written

WORDS = [
    *(b'"question"', b'"imageId"', b'"answer"', b'"types"', b'"question_id"', b'"image"'),
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\ud83d", b"null", b"NaN", b"tru"),
    *(
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xf0\x9f\x98",
        b"\x00",
        b"\n",
        b"\xc2\xa0",
        b"1e",
        b"-",
        b"[" * 99,
    ),
]
RECORDS: dict[str, Any] = {
    f"0{number}": {
        "question": ["What is it?", "Is the dog red?", "¿Qué es?", "Who\tis  \U0001f600?"][
            number % 4
        ],
        "imageId": f"n{number // 3}",
        "answer": ["a cat", "no", "yes"][number % 3],
        "isBalanced": number % 4 > 0,
        "types": {"structural": "query", "semantic": "attr", "detailed": "categoryThat"},
        "groups": {"global": "color", "local": None},
        "semantic": [{"operation": "select", "dependencies": [], "argument": "dog (17)"}],
        "entailed": [f"0{number}", f"0{(number + 1) % 9}"],
        "annotations": {"question": {"2": "17"}, "answer": {}, "fullAnswer": {"1:2": "17"}},
        "fullAnswer": "It's a cat.",
    }
    for number in range(9)
}
LISTED = [
    {"question_id": name if number % 2 else number, "image": f"{r['imageId']}.jpg", **r}
    for number, (name, r) in enumerate(RECORDS.items())
]


@st.composite
def _trees(draw: Any) -> bytes:
    """A file of valid, mutated or random records."""
    if draw(st.integers(0, 9)) == 0:
        tree: Any = draw(odd_values | st.dictionaries(st.text(max_size=3), odd_values, max_size=4))
        tree = Raw(written(tree))
    else:
        some = draw(st.integers(1, 9))
        keyed = draw(st.booleans())
        tree = dict(list(RECORDS.items())[:some]) if keyed else LISTED[:some]
        tree = changed(tree, draw(changes(3)))
    text = written(tree, ascii_only=draw(st.booleans()))
    return text.encode("utf-8", "replace")


@st.composite
def questions(draw: Any) -> tuple[dict[str, bytes], dict[str, int]]:
    """Question files, and the reader's buffer sizes."""
    contents = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        content = draw(_trees())
        if draw(st.booleans()):
            content = damaged(content, draw(deeds(WORDS)), json.dumps(LISTED).encode())
        contents.append(content)
    names = ["q.json"] if len(contents) == 1 else [f"q/q_{n}.json" for n in range(len(contents))]
    how = {
        "chunk": draw(st.sampled_from([1, 3, 64, 4 * 2**20])),
        "longest": draw(st.sampled_from([50, 2000, *[2**26] * 6])),
        "small": draw(st.sampled_from([0, 2**30])),
    }
    return dict(zip(names, contents, strict=True)), how


def read_question_files(folder: Path, how: dict[str, int]) -> None:
    """Read the files as a run does, and use them as runs and evaluations do."""
    source = folder / ("q.json" if (folder / "q.json").exists() else "q")
    with (
        patch.object(json_records, "CHUNK", how["chunk"]),
        patch.object(json_records, "LONGEST_RECORD", how["longest"]),
        patch.object(question_store, "SMALL", how["small"]),
        patch.object(question_conversion, "ROWS_AT_ONCE", 2),
        patch.object(question_conversion, "ROWS_A_BATCH", 4),
        patch.object(question_conversion, "BATCHES_A_CHUNK", 2),
        patch.object(question_conversion, "RECORDS_A_BATCH", 2),
    ):
        try:
            table = read_questions(source, folder / "store")
        except UserError:
            assert not list((folder / "store").rglob("*.arrow")), "half a store is left"
            raise
        _check(table, source)


def _check(table: QuestionTable, source: Path) -> None:
    """Compare the table with json's result, and run all later steps on it."""
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    given: dict[str, Any] = {}
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        listed = ((str(each["question_id"]), each) for each in content)
        given |= dict(content.items() if isinstance(content, dict) else listed)
    ids = table.data["question_id"].to_pylist()
    assert sorted(ids) == sorted(given), "other questions than the files have"
    for row, name in enumerate(ids):
        # As text, because NaN isn't equal to itself.
        assert json.dumps(table.structure(row)) == json.dumps(given[name])
        for column in ("image_id", "question"):
            assert table.text(column, row)
    for column in ("image_id", "answer", "question_code", "form"):
        assert len(table.codes(column)) == len(table)
    AnswerVocabulary.from_table(table, 5)
    assert len(table.take(table.balanced())) <= len(table)
    try:
        MismatchedQuestions(table, count=1, hard=False, seed=0).draw(0, 0)
        scored = balanced_questions(table)
    except UserError:
        return  # valid, but not for scoring
    answers_of(table, entailed_ids(scored))
