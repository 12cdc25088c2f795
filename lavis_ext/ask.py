"""Ask a picture: ``python -m lavis_ext.ask IMAGE "question" ["question" ...]``.

Prints each answer with the captions it was read from, and draws where the model looked.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps

from lavis_ext import distributed
from lavis_ext.checkpoints.sources import PACKAGED
from lavis_ext.common.errors import UserError, command, printable
from lavis_ext.config.loader import import_modules, merge, parse_options
from lavis_ext.config.renamed import rename_old_keys, told
from lavis_ext.config.typed import A_MAPPING, shown, typed
from lavis_ext.datasets.gqa.dataset import QuestionBatch
from lavis_ext.datasets.pictures import read_image
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor
from lavis_ext.processors.text import QuestionConfig, QuestionProcessor
from lavis_ext.registry import registry

if TYPE_CHECKING:
    from lavis_ext.encoders.blip.encoder import BlipEncoder
    from lavis_ext.models.pnp_vqa.answering import PipelineOutput

MINIATURE = f"{PACKAGED}miniature/fusion_encoder.safetensors"
MINIATURE_TYPE = "mini"
MOST_QUESTIONS = 50
CAPTIONS_SHOWN = 10


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Answer questions about one picture, and draw how."""
    arguments = _parser().parse_args(argv)
    out = arguments.out or Path(f"{arguments.image.stem}_answers.png")
    _check_questions(arguments.questions)
    image = read_picture(arguments.image)
    _check_out(out, arguments.image)
    import_modules(arguments.imports)
    section = model_section(arguments.weights, arguments.model_type, arguments.options or [])
    device = _device(arguments.device)
    _say_what_is_untrained(section)
    torch.manual_seed(0)  # what has no weights is at least the same in every call
    model = PnpVqaFusion.from_config(section, answering=True).to(device).eval()
    samples = samples_of(image, arguments.questions, section, device)
    _say_what_is_cut(model.blip, samples["text_input"])
    output = model.answer(samples)
    _draw(out, image, arguments, output)
    asked = section.captioner.sampling.num_captions
    answers = [
        {
            "question": question,
            "answer": output.answers[number],
            "matching": round(float(output.matching[number]), 4),
            "captions": output.captions[number],
            "captions_asked_for": asked,
            "repeated": output.repeated[number],
            "points": _points_in(image, output, number),
            "image": str(arguments.image),
            "picture": str(out),
        }
        for number, question in enumerate(arguments.questions)
    ]
    if arguments.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    for answer in answers:
        print(printable(_as_text(answer)), end="\n\n")
    print(f"Picture: {out}")


def read_picture(path: Path) -> Image.Image:
    """The picture as RGB, the way up that its camera noted.

    Raises UserError naming the file if it is missing or can't be read as a picture.
    """
    image = read_image(path)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def model_section(
    weights: str | None, model_type: str | None, options: Sequence[str]
) -> PnpVqaFusionConfig:
    """The section ``model`` for the arguments of the command.

    Args:
        weights: a file of fusion weights; they bring the section they were trained with. Left out,
            they are the miniature's that ships, unless another model type is asked for.
        model_type: the type whose defaults the section starts from; with weights it must be theirs.
        options: ``model.KEY=VALUE``, winning over both.

    Raises:
        UserError: for weights that can't be read, and for types, keys and values that there aren't.
    """
    flags = {"arch": "pnp_vqa_fusion", "model_type": model_type, "fusion_weights": weights}
    given = merge(
        OmegaConf.create({"model": {key: value for key, value in flags.items() if value}}),
        _renamed(parse_options(options)),
    )
    others = [str(name) for name in given if name != "model"]
    if others:
        raise UserError(
            f"--options: '{others[0]}' isn't an option here; they all begin with model, such as "
            "model.captioner.sampling.num_captions=5."
        )
    model = given.model
    if not OmegaConf.is_dict(model):
        raise UserError(f"--options: model is {shown(model)}; it must be {A_MAPPING}.")
    if not model.get("fusion_weights") and model.get("model_type") in (None, MINIATURE_TYPE):
        model.fusion_weights = MINIATURE
    defaults = PnpVqaFusion.default_section(model)
    return typed(
        PnpVqaFusionConfig, merge(OmegaConf.create({"model": defaults}), given).model, "model"
    )


def _renamed(given: DictConfig) -> DictConfig:
    """Options under today's names, with a line about those that had others."""
    tree: Any = OmegaConf.to_container(given)
    if found := rename_old_keys(tree, PnpVqaFusion.OLD_KEYS):
        _say(told(found))
    return OmegaConf.create(tree)


def samples_of(
    image: Image.Image,
    questions: Sequence[str],
    section: PnpVqaFusionConfig,
    device: torch.device,
) -> QuestionBatch:
    """A batch of one image and all its questions.

    A question's text is its id too, and what is drawn at random depends on the id alone; so a
    question gets the same answer whatever else is asked.
    """
    sizes = {name: stream.image_size for name, stream in section.streams.items()}
    pixels = StreamImagesProcessor(StreamImagesConfig(sizes=sizes))(image)
    # Words are left to the text encoder to cut, which says so.
    words = max(len(question.split()) for question in questions)
    processor = QuestionProcessor(QuestionConfig(max_words=words))
    texts = [processor(question) for question in questions]
    return {
        "images": {name: pixels_of[None].to(device) for name, pixels_of in pixels.items()},
        "image_index": torch.zeros(len(texts), dtype=torch.int64),
        "text_input": texts,
        "ids": texts,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.ask",
        description="Answer questions about a picture, and draw where the model looked.",
    )
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="the picture, JPEG or PNG or such"
    )
    parser.add_argument("questions", nargs="+", metavar="QUESTION", help="each in quotes")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="fusion weights that training wrote; without them the miniature that ships",
    )
    parser.add_argument(
        "--model-type",
        metavar="TYPE",
        help="a model type such as base_esam, in place of the weights' or the miniature's",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        metavar="KEY=VALUE",
        help="values of the model's config, such as model.captioner.sampling.num_captions=5",
    )
    parser.add_argument(
        "--imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules that register what the weights' config names, as a YAML's imports do",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.png", help="what to draw to (IMAGE's name_answers.png)"
    )
    parser.add_argument("--json", action="store_true", help="print the answers as JSON")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="(%(default)s)"
    )
    return parser


def _check_questions(questions: Sequence[str]) -> None:
    for number, question in enumerate(questions, start=1):
        if not question.strip():
            which = f"Question {number}" if len(questions) > 1 else "The question"
            raise UserError(f'{which} is empty; write it in quotes, such as "What color is it?".')
    if len(questions) > MOST_QUESTIONS:
        raise UserError(
            f"{len(questions)} questions are too many for one picture; ask at most "
            f"{MOST_QUESTIONS} at once."
        )


def _check_out(out: Path, image: Path) -> None:
    """Find out that nothing can be drawn there before a minute of work, not after it."""
    if out.suffix.lower() != ".png":
        raise UserError(f"--out is {out}; what is drawn is a PNG file: give it the suffix .png.")
    if out.resolve() == image.resolve():
        raise UserError(f"--out is {out}, which is the picture that is asked; name another file.")
    if out.is_dir():
        raise UserError(f"--out is {out}, which is a folder; name a file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(out, error) from None


def _cannot_write(out: Path, error: OSError) -> UserError:
    return UserError(f"--out: {out} can't be written ({error.strerror or error}).")


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device is cuda, but torch finds no CUDA device; use --device auto or cpu."
        )
    return distributed.choose_device(name)


def _say(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)


def _say_what_is_untrained(section: PnpVqaFusionConfig) -> None:
    if section.fusion_weights:
        return
    kind = section.model_type
    if section.fusion.gate:
        _say(
            f"no fusion weights are given, so the gate of {kind} is closed, and fused features are "
            "those of its first stream. Give --weights to see what a trained fusion does."
        )
    elif registry.get_fusion_class(section.fusion.name).reads != "first":
        _say(
            f"no fusion weights are given, and the fusion of {kind} is untrained and has no gate; "
            "its answers mean nothing. Give --weights."
        )


def _say_what_is_cut(blip: "BlipEncoder", texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        before = blip.truncated_questions
        input_ids, _ = blip.tokenize([text])
        if blip.truncated_questions > before:
            read = str(blip.tokenizer.decode(input_ids[0], skip_special_tokens=True))
            _say(
                f"question {number} is longer than the text encoder takes. It was cut after "
                f"{input_ids.shape[1]} tokens, which end in '{' '.join(read.split()[-4:])}'."
            )


def _draw(
    out: Path, image: Image.Image, arguments: argparse.Namespace, output: "PipelineOutput"
) -> None:
    # Drawing is imported here because matplotlib takes a second.
    from lavis_ext.evaluation.page import write_png
    from lavis_ext.evaluation.picture import answer_figure

    figure = answer_figure(image, arguments.image.name, arguments.questions, output)
    try:
        write_png(figure, out)
    except OSError as error:
        raise _cannot_write(out, error) from None


def _points_in(image: Image.Image, output: "PipelineOutput", number: int) -> list[list[float]]:
    """A question's points as [x, y] in pixels of the picture itself."""
    height, width = output.image_size
    points = output.points[number][output.labels[number] == 1]
    scale = points.new_tensor([image.width / width, image.height / height])
    return [[round(value, 1) for value in point] for point in (points * scale).tolist()]


def _as_text(answer: dict[str, Any]) -> str:
    captions, asked = answer["captions"], answer["captions_asked_for"]
    left_out = len(captions) - CAPTIONS_SHOWN
    lines = [
        f"Question: {answer['question']}",
        f"Answer:   {answer['answer'] or '(empty)'}",
        f"Match:    {100 * answer['matching']:.0f} % that question and picture belong together",
        *(
            f"{'' if number else 'Captions:':<10}{caption}"
            for number, caption in enumerate(captions[:CAPTIONS_SHOWN])
        ),
    ]
    if left_out > 0:
        lines.append(f"{'':<10}and {left_out} more (--json gives all)")
    if len(captions) < asked:
        different = "1 caption" if len(captions) == 1 else f"{len(captions)} different captions"
        lines.append(
            f"The captioner repeated itself: {different}, not {asked} "
            f"({answer['repeated']} repetitions were left out)."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
