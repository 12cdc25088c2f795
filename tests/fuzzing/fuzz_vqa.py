"""Questions in other formats for the fuzzer: pairs, lists, conversations, tables."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from lavis_ext.datasets.questions import json_records, store
from lavis_ext.datasets.questions.files import QuestionFiles
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.datasets.vqa.annotations import AnnotationPair
from lavis_ext.datasets.vqa.dataset import Benchmark
from lavis_ext.datasets.vqa.lists import (
    RecordLists,
    aokvqa_rows,
    conversation_rows,
    lavis_rows,
    vizwiz_rows,
)
from lavis_ext.datasets.vqa.tables import TableFiles, find_tables
from lavis_ext.evaluation.vqa.scoring import VqaScorer
from tests.fuzzing.mutations import changed, changes, damaged, deeds, written

COUNT = 5
ASKED = [f"What is {place}?" for place in range(COUNT)]
PEOPLE = [{"answer": answer, "answer_id": n} for n, answer in enumerate(["a cat", "cat", "2", "2"])]
QUESTIONS = {
    "data_subtype": "train2014",
    "questions": [{"question_id": n, "image_id": n, "question": ASKED[n]} for n in range(COUNT)],
    "info": {"year": 2017},
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": n, "image_id": n, "answers": PEOPLE, "answer_type": "other"}
        for n in range(COUNT)
    ]
}
AOKVQA = [
    {"question_id": f"q{n}", "image_id": n, "question": ASKED[n], "direct_answers": ["cat", "dog"]}
    for n in range(COUNT)
]
VIZWIZ = [{"image": f"v{n}.jpg", "question": ASKED[n], "answers": PEOPLE} for n in range(COUNT)]
LAVIS = [
    {"question_id": n, "image": f"a/{n}.jpg", "question": ASKED[n], "answer": ["cat", "cat", "dog"]}
    for n in range(COUNT)
]
CONVERSATIONS = [
    {
        "id": str(n // 2),
        "image": f"{n}.jpg",
        "conversations": [
            {"from": "human", "value": f"<image>\n{ASKED[n]}"},
            {"from": "gpt", "value": "A cat."},
        ],
    }
    for n in range(COUNT)
]
ROWS = [{"image": f"{n}.jpg", "question": ASKED[n], "answer": ["cat", "dog"]} for n in range(COUNT)]
CSV = 'image,question,answer\n"1.jpg",What?,cat\n2.jpg,"Who, there?","[""a"", ""b""]"\n'
LISTS = {
    "aokvqa": (AOKVQA, aokvqa_rows),
    "vizwiz": (VIZWIZ, vizwiz_rows),
    "lavis": (LAVIS, lavis_rows),
    "conversations": (CONVERSATIONS, conversation_rows),
}
WORDS = [
    *(b'"questions"', b'"annotations"', b'"answer"', b'"image"', b'"image_id"', b"PAR1", b"ARROW1"),
    *(b"{", b"}", b"[", b"]", b",", b'"', b"\n", b"\\ud83d", b"\xff", b"\x00", b"1e", b"[" * 99),
]


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def arrow() -> bytes:
    table = pa.Table.from_pylist(ROWS)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@st.composite
def vqa_questions(draw: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files of one format, and the options of their reader."""

    def made(tree: Any) -> bytes:
        text = written(changed(tree, draw(changes(2))), ascii_only=draw(st.booleans()))
        return text.encode("utf-8", "replace")

    form = draw(st.sampled_from(["pair", "pair", *LISTS, "csv", "parquet", "saved"]))
    if form == "pair":
        files = {"q.json": made(QUESTIONS), "a.json": made(ANNOTATIONS)}
    elif form in LISTS:
        files = {"q.json": made(LISTS[form][0])}
    elif form == "saved":
        state = {"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": None}
        files = {"train/data.arrow": arrow(), "train/state.json": made(state)}
    else:
        files = {f"train.{form}": CSV.encode() if form == "csv" else parquet()}
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(files)))
        files[name] = damaged(files[name], draw(deeds(WORDS)), json.dumps(LAVIS).encode())
    return files, {"form": form, "chunk": draw(st.sampled_from([1, 3, 64, 4 * 2**20]))}


def read_vqa_files(folder: Path, how: dict[str, Any]) -> None:
    """Read the files as a run does, and use them as runs and evaluations do."""
    with patch.object(json_records, "CHUNK", how["chunk"]):
        table = QuestionTable.of_store(store.open_store(_files(folder, how["form"])))
    ids = table.data["question_id"].to_pylist()
    assert len(set(ids)) == len(ids) > 0
    for row in range(len(table)):
        assert table.text("question", row)
        assert table.text("image_id", row)
    vocabulary = AnswerVocabulary.from_table(table, 5)
    for benchmark in Benchmark:
        scorer = VqaScorer(table, benchmark)
        if scorer.questions:
            answers = {question.id: question.answer for question in scorer.questions}
            scorer.result(answers, vocabulary, resamples=0, shown=2, seed=0)


def _files(folder: Path, form: str) -> QuestionFiles:
    path = folder / "q.json"
    if form == "pair":
        return AnnotationPair(path, (path, folder / "a.json"), "COCO_{data_subtype}_{image_id:04d}")
    if form in LISTS:
        return RecordLists(path, (path,), LISTS[form][1], "a list", "{image_id:012d}")
    return TableFiles(folder, find_tables(folder, "train"))
