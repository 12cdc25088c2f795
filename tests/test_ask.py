"""The ask command: its output, files and errors."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_ext.ask.command import main
from lavis_ext.ask.pipeline import Pipeline, model_section, unknown_word_notes
from lavis_ext.config.typed import typed
from lavis_ext.datasets.pictures import read_image
from lavis_ext.encoders.blip.encoder import BlipEncoder, BlipEncoderConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests.evaluation.test_picture import made_output
from tests.tiny import BLIP

LIMIT = 12


class FakeModel(torch.nn.Module):
    """Replaces the model: its answers are invented, its text encoder is real."""

    captions = ["a red circle", "a blue square"]

    def __init__(self) -> None:
        super().__init__()
        section = {**BLIP, "max_question_tokens": LIMIT}
        self.blip = BlipEncoder(typed(BlipEncoderConfig, section, "model.blip"))
        self.samples: Any = None
        self.config: Any = None

    def answer(self, samples: Any) -> Any:
        self.samples = samples
        count = len(samples["text_input"])
        output = made_output(count, captions=self.captions, hot=(1, 6))
        output.repeated = [8] * count
        return output


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    model = FakeModel()

    def build(section: Any, *, answering: bool) -> FakeModel:
        assert answering
        model.config = section
        return model

    monkeypatch.setattr(PnpVqaFusion, "from_config", build)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (320, 240), (200, 30, 30)).save(tmp_path / "cup.jpg")
    return model


UNTRAINED = ("--model-type", "base_esam", "--device", "cpu")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command and return its error message."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: ")
    return last.removeprefix("error: ")


def test_answers_are_printed_and_drawn(
    fake: FakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["cup.jpg", "What color is it?", *UNTRAINED])
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "question  What color is it?",
        "answer    red",
        "match     50 % that question and picture belong together",
        "captions  a red circle",
        "          a blue square",
        "",
        "The captioner repeated itself: 2 different captions, not 100 (8 repetitions were left "
        "out).",
        "",
        "Picture: cup_answers.png",
    ]
    assert (
        "the gate of base_esam is closed, and fused features are those of its first" in printed.err
    )
    with Image.open(tmp_path / "cup_answers.png") as drawn:
        assert drawn.format == "PNG"
        assert drawn.width == 1400
        one_question = drawn.height
    main(["cup.jpg", "what?", "where?", "who?", *UNTRAINED, "--out", "new/three.png"])
    with Image.open(tmp_path / "new" / "three.png") as drawn:
        assert drawn.height > 2 * one_question
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("question")] == [
        "question  what?",
        "question  where?",
        "question  who?",
    ]


def test_json_is_one_document_with_points_in_pixels_of_the_picture(
    fake: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["cup.jpg", "What color?", "Where?", *UNTRAINED, "--json", "--out", "x.png"])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["question"] for answer in answers] == ["What color?", "Where?"]
    assert answers[0] == {
        "question": "What color?",
        "answer": "red",
        "matching": 0.5,
        "captions": ["a red circle", "a blue square"],
        "captions_asked_for": 100,
        "repeated": 8,
        "points": [[260.0, 45.0]],  # column 6.5 of 8 on 320 pixels, row 1.5 of 8 on 240
        "image": "cup.jpg",
        "picture": "x.png",
    }


def test_ten_captions_are_printed_and_the_others_counted(
    fake: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.captions = [f"caption {number}" for number in range(14)]
    options = ("--options", "model.captioner.sampling.num_captions=14")
    main(["cup.jpg", "what?", *UNTRAINED, *options])
    out = capsys.readouterr().out
    assert "caption 9" in out
    assert "caption 10" not in out
    assert "and 4 more" in out
    assert "repeated itself" not in out


def test_a_long_question_is_cut_with_a_warning(
    fake: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "what color is the circle " + "that is left of the square " * 12
    main(["cup.jpg", "what color?", long, *UNTRAINED])
    notes = capsys.readouterr().err.splitlines()
    assert notes[-1] == (
        f"note: question 2 is longer than the text encoder takes. It was cut after {LIMIT} tokens, "
        "which end in 'is left of the'."
    )
    assert not any("question 1" in note for note in notes)


def test_the_model_gets_one_image_and_normalized_questions(fake: FakeModel) -> None:
    main(["cup.jpg", "  What   COLOR is it? ", "where?", *UNTRAINED])
    samples = fake.samples
    assert samples["text_input"] == ["what color is it?", "where?"]
    assert samples["ids"] == samples["text_input"], "the same draws whatever else is asked"
    assert samples["image_index"].tolist() == [0, 0]
    assert (
        samples["images"]["grid"].shape
        == samples["images"]["segmentation"].shape
        == (1, 3, 384, 384)
    )
    assert samples["images"]["grid"].dtype == torch.uint8
    red, green, _ = samples["images"]["grid"].float().mean(dim=(0, 2, 3)).tolist()
    assert red > green + 100


def test_each_stream_gets_its_own_size() -> None:
    sizes = ["model.streams.grid.image_size=64", "model.streams.segmentation.image_size=128"]
    model = FakeModel()
    model.config = model_section(None, "base_esam", sizes)
    Pipeline(model).ask(Image.new("RGB", (30, 20)), "what?")  # type: ignore[arg-type]
    assert model.samples["images"]["grid"].shape == (1, 3, 64, 64)
    assert model.samples["images"]["segmentation"].shape == (1, 3, 128, 128)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cup.jpg", ""], 'The question is empty; write it in quotes, such as "What color is it?"'),
        (["cup.jpg", "what?", " \t "], "Question 2 is empty"),
        (["cup.jpg", *["what?"] * 51], "51 questions are too many for one picture; ask at most 50"),
        (["no.jpg", "what?"], "no.jpg: the image can't be read (No such file or directory)."),
        (["empty", "what?"], "empty: there are no pictures in this folder."),
        (["cup.jpg"], "There is no question about cup.jpg. Give --question"),
        (
            ["cup.jpg", "cup.png"],
            "'cup.png' stands where a question is expected, and looks like a picture",
        ),
        (["cup.jpg", "what?", "no.webp"], "'no.webp' stands where a question is expected"),
        (["cup.jpg", "some/cup", "what?"], "'some/cup' stands where a question is expected"),
        (["cup.jpg", "empty", "what?"], "'empty' stands where a question is expected"),
        (["cup.jpg", "no.jpg", "-q", "what?"], "no.jpg: the image can't be read (No such file"),
        (["empty.jpg", "text.jpg", "-q", "what?"], "None of 2 pictures can be read."),
        (
            ["cup.jpg", "cup.png", "-q", "what?", "--out", "x.png"],
            "--out is x.png, and a drawing is of one picture; for 2 pictures give a page",
        ),
        (["empty.jpg", "what?"], "empty.jpg: the image file is empty."),
        (["text.jpg", "what?"], "text.jpg: not a supported image format"),
        (["half.jpg", "what?"], "half.jpg: the image can't be read (image file is truncated"),
        (
            ["cup.jpg", "what?", "--out", "x.jpg"],
            "--out is x.jpg; the drawing is a PNG file and the page is HTML",
        ),
        (
            ["cup.png", "what?", "--out", "./cup.png"],
            "--out is cup.png, which is the input picture",
        ),
        (["n" * 300, "what?"], "the image can't be read (File name too long)."),
        (["", "what?"], "A PICTURE is an empty string"),
        (["loop.png", "what?"], "loop.png: the image can't be read (Too many levels"),
        (["cup.jpg", "\udcff?"], r"The question has bytes that are no text ('\udcff?')"),
        (["cup.jpg", "what?", "--out", "loop.png"], "--out: loop.png can't be written (Too many"),
        (["cup.jpg", "what?", "--out", "pipe.png"], "--out: pipe.png can't be written (a named"),
        (
            ["cup.jpg", "what?", "--out", f"{'n' * 300}.png"],
            "can't be written (File name too long).",
        ),
        (["cup.jpg", "what?", "--out", "folder.png"], "--out is folder.png, which is a folder"),
        (["cup.jpg", "what?", "--out", "cup.png/x.png"], "--out: cup.png/x.png can't be written ("),
        (["cup.jpg", "what?", "--weights", "no.safetensors"], "there is no file no.safetensors"),
        (["cup.jpg", "what?", "--weights", "cup.jpg"], "cup.jpg can't be read"),
        (
            ["cup.jpg", "what?", "--model-type", "base_esm"],
            "model.model_type is 'base_esm'; there are: base_esam",
        ),
        (
            [*UNTRAINED, "cup.jpg", "what?", "--options", "model.captioner.samplin.num_captions=5"],
            "model.captioner.samplin: there is no such key. Did you mean 'sampling'?",
        ),
        (
            [
                *UNTRAINED,
                "cup.jpg",
                "what?",
                "--options",
                "model.captioner.sampling.num_captions=0",
            ],
            "model.captioner.sampling.num_captions is 0; it must be at least 1.",
        ),
        (
            ["cup.jpg", "what?", "--options", "run.seed=3"],
            "--options: 'run' isn't an option here; only model options are",
        ),
        (
            ["cup.jpg", "what?", "--imports", "my_fusion"],
            "imports: the module 'my_fusion' can't be imported",
        ),
        (
            ["cup.jpg", "what?", "--options", "model=3"],
            "--options: model is 3; it must be a mapping",
        ),
        (
            ["cup.jpg", "what?", "--options", "blip"],
            "--options: 'blip' isn't of the form KEY=VALUE",
        ),
    ],
)
def test_mistakes_end_with_code_2_and_a_sentence(
    fake: FakeModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    whole = (tmp_path / "cup.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (9, 9)).save(tmp_path / "cup.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty").mkdir()
    assert says in refused(capsys, *arguments)
    assert not (tmp_path / "cup_answers.png").exists()


def test_without_a_gpu_cuda_is_rejected(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(capsys, "cup.jpg", "what?", "--model-type", "base_esam", "--device", "cuda")
    assert message.startswith("--device is cuda, but torch finds no CUDA device")


def test_a_full_disk_is_reported_after_the_work_too(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lavis_ext.evaluation.page.write_png", full)
    message = refused(capsys, "cup.jpg", "what?", *UNTRAINED)
    assert message == "--out: cup_answers.png can't be written (No space left on device)."


def test_pictures_of_the_same_name_and_odd_suffixes_are_distinguished(tmp_path: Path) -> None:
    for suffix, side in ((".jpg", 8), (".png", 9)):
        Image.new("RGB", (side, side)).save(tmp_path / f"cup{suffix}")
    Image.new("L", (7, 7)).save(tmp_path / "upload", format="PNG")
    assert read_image(tmp_path / "cup.jpg").size == (8, 8)
    assert read_image(tmp_path / "cup.png").size == (9, 9)
    assert read_image(tmp_path / "upload").mode == "RGB"


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    photo = Image.new("RGB", (30, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # turned by a quarter
    photo.save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg").size == (20, 30)


def test_options_override_the_section() -> None:
    section = model_section(None, "base_esam", ["model.captioner.sampling.num_captions=5"])
    assert section.captioner.sampling.num_captions == 5
    assert section.model_type == "base_esam"
    assert section.fusion_weights is None
    section = model_section(None, "base_esam", ["model.model_type=large_esam"])
    assert section.streams["grid"].vision_width == 1024


@pytest.mark.parametrize("model_type", [None, "mini"])
def test_the_miniature_that_ships_is_the_default(model_type: str | None) -> None:
    section = model_section(None, model_type, [])
    assert section.fusion_weights == PnpVqaFusion.SHIPPED["mini"]
    assert section.model_type == "mini"


def test_the_real_pipelines_answers_are_independent_of_other_questions(
    mini_gqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = sorted((mini_gqa / "images").iterdir())[0]
    out = str(tmp_path / "out.png")

    def asked(*questions: str) -> list[dict[str, Any]]:
        fewer = "model.captioner.sampling.num_captions=3"
        options = ("--device", "cpu", "--out", out, "--json", "--options", fewer)
        main([str(picture), *questions, *options])
        answers: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return answers

    both = asked("What color is the circle?", "Is there a square?")
    assert [len(answer["captions"]) for answer in both] == [3, 3]
    assert both[0]["captions"] != both[1]["captions"]
    (alone,) = asked("Is there a square?")
    assert alone["captions"] == both[1]["captions"]
    assert alone["answer"] == both[1]["answer"]
    assert alone["points"] == both[1]["points"]
    assert all(0 <= x < 128 and 0 <= y < 128 for x, y in alone["points"])
    with Image.open(out) as drawn:
        assert drawn.width == 1400


def test_words_that_the_text_encoder_does_not_know_are_named() -> None:
    blip: Any = FakeModel().blip
    (note,) = unknown_word_notes(blip, ["is the star red?", "what color is the xylophone?"])
    assert "doesn't know: " in note
    assert "xylophone" in note
    assert "color" not in note
    assert not unknown_word_notes(blip, ["what color is the circle?"])


def test_several_pictures_and_folders_make_one_page(
    fake: FakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more").mkdir()
    for name in ("b.png", "a.png", "cup.jpg"):
        Image.new("RGB", (30, 20)).save(tmp_path / "more" / name)
    (tmp_path / "more" / "notes.txt").write_text("no picture")
    main(["cup.jpg", "more", "more/a.png", "--question", "what?", "-q", "<b>where?", *UNTRAINED])
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines() if "what?" in line]
    assert [row[0] for row in rows] == ["cup.jpg", "more/a.png", "more/b.png", "more/cup.jpg"]
    assert printed.out.endswith("Page: answers.html\n")
    page = (tmp_path / "answers.html").read_text()
    headings = ["cup.jpg", "a.png", "b.png", "more/cup.jpg"]  # a path where names are equal
    assert re.findall("<h2>(.*?)</h2>", page) == headings
    assert page.count("Answer: <b>red</b>") == 8
    assert page.count("&lt;b&gt;where?") == 4
    assert "<b>where" not in page
    assert len(fake.samples["image_index"]) == 8, "all pictures in one pass"


def test_a_folders_own_drawings_are_no_pictures(
    fake: FakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["cup.jpg", "what?", *UNTRAINED])
    Image.new("RGB", (30, 20)).save(tmp_path / "survey_answers.png")  # of no picture here
    capsys.readouterr()
    main([".", "--question", "what?", *UNTRAINED, "--json"])
    asked = [each["image"] for each in json.loads(capsys.readouterr().out)]
    assert asked == ["cup.jpg", "survey_answers.png"]


def test_broken_pictures_are_named_and_skipped_with_code_1(
    fake: FakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_text("no picture")
    with pytest.raises(SystemExit) as ended:
        main(["broken.jpg", "cup.jpg", "--question", "what?", *UNTRAINED, "--json"])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert [each["image"] for each in json.loads(printed.out)] == ["cup.jpg"]
    assert "skipped: broken.jpg: not a supported image format" in printed.err
    assert printed.err.endswith("error: 1 of 2 pictures can't be read.\n")
    assert "Skipped: broken.jpg: not a supported" in (tmp_path / "answers.html").read_text()


def test_a_page_of_one_picture_can_be_asked_for(fake: FakeModel, tmp_path: Path) -> None:
    main(["cup.jpg", "what?", *UNTRAINED, "--out", "cup.html"])
    page = (tmp_path / "cup.html").read_text()
    assert "<title>cup.jpg</title>" in page
    assert "<script" not in page


def test_answers_are_independent_of_other_pictures(
    mini_gqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [str(path) for path in sorted((mini_gqa / "images").iterdir())[:3]]
    options = ["--options", "model.captioner.sampling.num_captions=3", "--device", "cpu"]

    def asked(*given: str) -> list[dict[str, Any]]:
        main([*given, "-q", "Is there a square?", "--json", *options, "--out", out])
        answers: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return answers

    out = str(tmp_path / "out.html")
    together = asked(*pictures)
    (alone,) = asked(pictures[1])
    assert [each["image"] for each in together] == pictures
    assert together[1] == alone


def test_pictures_whose_names_are_no_text_are_answered(
    fake: FakeModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    name = os.fsdecode(b"cup\xff.png")
    try:
        Image.new("RGB", (32, 24)).save(folder / name, "PNG")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    Image.new("RGB", (32, 24)).save(folder / "\x1b[31mline\nbreak.png", "PNG")
    main([str(folder), "-q", "what?", "--out", "page.html"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>cup\\udcff.png</h2>" in page
    assert "<h2>\\x1b[31mline" in page
    main([str(folder / name), "what?"])
    assert (tmp_path / f"{Path(name).stem}_answers.png").is_file()
    capfd.readouterr()
    main([str(folder / name), "what?", "--json"])
    assert json.loads(capfd.readouterr().out)[0]["image"] == str(folder / name)


def test_a_cycle_of_links_in_a_folder_is_a_picture_that_cannot_be_read(
    fake: FakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(SystemExit) as ended:
        main([".", "-q", "what?"])
    assert ended.value.code == 1
    assert "skipped: a.png: the image can't be read (Too many" in capsys.readouterr().err
    assert "Skipped: a.png" in (tmp_path / "answers.html").read_text(encoding="utf-8")
