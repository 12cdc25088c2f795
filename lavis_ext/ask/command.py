"""``python -m lavis_ext.ask PICTURE [PICTURE | FOLDER ...] --question "..."``.

Prints each answer with the captions it was read from, and draws heat maps, points and masks: of one
picture as PNG, of several as a page.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from lavis_ext.ask.arguments import add_model_arguments, pipeline_of, print_note
from lavis_ext.ask.inputs import (
    DRAWING,
    Pictures,
    drawing_name,
    picture_paths,
    places_and_questions,
)
from lavis_ext.ask.pipeline import AnsweredPicture, Pipeline, check_questions
from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError, command
from lavis_ext.common.files import check_regular, is_folder, real_path, written_aside
from lavis_ext.common.progress import ProgressLine
from lavis_ext.common.tables import Table, facts, show, table
from lavis_ext.evaluation.answered import Answered

CAPTIONS_SHOWN = 10
PAGE = ".html"


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Answer questions about pictures, and draw heat maps, points and masks.

    Exits with code 1 if some pictures couldn't be read, and 2 if none could.
    """
    arguments = _parser().parse_args(argv)
    places, questions = places_and_questions(arguments.places, arguments.questions)
    check_questions(questions)
    paths = picture_paths(places)
    out = arguments.out or _default_out(paths)
    _check_out(out, paths)
    pictures = Pictures(paths)
    first = pictures.first()  # before the model is loaded
    pipeline = pipeline_of(arguments)
    for note in pipeline.notes(questions):
        print_note(note)
    asked_for = pipeline.model.config.captions_wanted
    parts, answers = [], []
    for answered in _answered(pipeline, chain([first], pictures), questions, len(paths)):
        where = {"image": str(pictures.paths[answered.name]), "picture": str(out)}
        answers += [_as_json(answered, each, asked_for) | where for each in answered]
        parts.append(_drawn(answered, out))
    _write(out, parts, _title(paths), pictures.unreadable)
    if arguments.json:
        with suppress(BrokenPipeError):  # its reader, such as `head`, has enough
            print(json.dumps(answers, indent=1, ensure_ascii=False))
    else:
        _print_answers(answers, several=len(paths) > 1, out=out)
    if skipped := len(pictures.unreadable):
        print(f"error: {skipped} of {len(paths)} pictures can't be read.", file=sys.stderr)
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.ask",
        description="Answer questions about pictures, and draw heat maps, points and masks. "
        "One picture's questions may also follow it, without --question.",
    )
    parser.add_argument(
        "places", nargs="+", metavar="PICTURE", help="picture, such as JPEG or PNG, or a folder"
    )
    parser.add_argument(
        "-q",
        "--question",
        action="append",
        default=[],
        dest="questions",
        metavar="QUESTION",
        help="asked about each picture; may be given several times",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="FILE",
        help="drawing (.png, one picture) or page (.html); by default NAME_answers.png in the "
        "working directory for NAME.jpg, and answers.html for several pictures",
    )
    parser.add_argument("--json", action="store_true", help="print the answers as JSON")
    return parser


def _default_out(paths: Sequence[Path]) -> Path:
    return Path(drawing_name(paths[0]) if len(paths) == 1 else f"answers{PAGE}")


def _check_out(out: Path, pictures: Sequence[Path]) -> None:
    """Raise UserError for an ``out`` that can't be written, before the model is loaded."""
    kind = out.suffix.lower()
    if kind == DRAWING and len(pictures) > 1:
        raise UserError(
            f"--out is {out}, and a drawing is of one picture; for {len(pictures)} pictures give a "
            f"page, with the suffix {PAGE}."
        )
    if kind not in (DRAWING, PAGE):
        raise UserError(
            f"--out is {out}; the drawing is a PNG file and the page is HTML: give it the suffix "
            f"{DRAWING} or {PAGE}."
        )
    if real_path(out) in {real_path(picture) for picture in pictures}:
        raise UserError(f"--out is {out}, which is the input picture; name another file.")
    if is_folder(out):
        raise UserError(f"--out is {out}, which is a folder; name a file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            check_regular(out)
    except OSError as error:
        raise _cannot_write(out, error) from None


def _cannot_write(out: Path, error: OSError) -> UserError:
    return UserError(f"--out: {out} can't be written ({error.strerror or error}).")


def _answered(
    pipeline: Pipeline,
    pictures: Iterable[tuple[str, Image.Image]],
    questions: Sequence[str],
    count: int,
) -> Iterator[AnsweredPicture]:
    """Answer, with a line of progress where it takes long."""
    with ProgressLine.on_stderr(10.0) as line:
        for number, answered in enumerate(pipeline.ask_each(pictures, questions), start=1):
            yield answered
            line.update(f"{number} of {count} pictures are answered")


def _drawn(answered: AnsweredPicture, out: Path) -> Any:
    """A picture's figure, or its part of the page."""
    # Drawing is imported here because matplotlib takes a second.
    from lavis_ext.evaluation.answer_page import picture_html
    from lavis_ext.evaluation.picture import answer_figure

    draw = answer_figure if out.suffix.lower() == DRAWING else picture_html
    return draw(answered.image, answered.name, answered.answered)


def _write(out: Path, parts: Sequence[Any], title: str, unreadable: Sequence[str]) -> None:
    from lavis_ext.evaluation.answer_page import page_html
    from lavis_ext.evaluation.page import write_png

    try:
        if out.suffix.lower() == DRAWING:
            write_png(parts[0], out)
            return
        notes = [f"Skipped: {reason}" for reason in unreadable]
        with written_aside(out) as aside:
            aside.write_text(page_html(title, parts, notes), encoding="utf-8")
    except OSError as error:
        raise _cannot_write(out, error) from None


def _title(paths: Sequence[Path]) -> str:
    return paths[0].name if len(paths) == 1 else f"Answers about {len(paths)} pictures"


def _as_json(picture: AnsweredPicture, answered: Answered, asked_for: int) -> dict[str, Any]:
    size = picture.image.size
    return {
        "question": answered.question,
        "answer": answered.answer,
        "matching": round(answered.matching, 4),
        "captions": answered.captions,
        "captions_asked_for": asked_for,
        "repeated": answered.repeated,
        "points": [
            [round(float(share) * side, 1) for share, side in zip(point, size, strict=True)]
            for point in answered.points
        ],
    }


def _print_answers(answers: Sequence[dict[str, Any]], *, several: bool, out: Path) -> None:
    if several:
        # Captions are on the page.
        rows = [
            (each["image"], each["question"], each["answer"] or "(empty)", _percent(each))
            for each in answers
        ]
        show(table(rows, ("picture", "question", "answer", "match")), f"Page: {out}")
        return
    kind = "Picture" if out.suffix.lower() == DRAWING else "Page"
    show(*(part for answer in answers for part in _answer_table(answer)), f"{kind}: {out}")


def _percent(answer: dict[str, Any]) -> str:
    return f"{100 * answer['matching']:.0f} %"


def _answer_table(answer: dict[str, Any]) -> list[Table | str]:
    captions, asked = answer["captions"], answer["captions_asked_for"]
    rows = [
        ("question", answer["question"]),
        ("answer", answer["answer"] or "(empty)"),
        ("match", f"{_percent(answer)} that question and picture belong together"),
        *(
            ("" if number else "captions", caption)
            for number, caption in enumerate(captions[:CAPTIONS_SHOWN])
        ),
    ]
    left_out = len(captions) - CAPTIONS_SHOWN
    if left_out > 0:
        rows.append(("", f"and {left_out} more (--json gives all)"))
    if len(captions) < asked:
        different = "1 caption" if len(captions) == 1 else f"{len(captions)} different captions"
        repeated = (
            f"The captioner repeated itself: {different}, not {asked} "
            f"({answer['repeated']} repetitions were left out)."
        )
        return [facts(rows), repeated]
    return [facts(rows)]
