"""The pipeline from Python: pictures and questions in, answers and heat maps out.

:func:`lavis_ext.load_pipeline` builds it with everything that its weights need.
"""

import io
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from lavis_ext import distributed
from lavis_ext.common.errors import UserError, is_text, listed, shortened
from lavis_ext.common.grouping import grouped
from lavis_ext.config.command_line import model_options
from lavis_ext.config.loader import merge
from lavis_ext.config.typed import typed
from lavis_ext.datasets.pictures import to_rgb
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.evaluation.answered import Answered
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor
from lavis_ext.processors.text import QuestionConfig, QuestionProcessor

if TYPE_CHECKING:
    from lavis_ext.encoders.blip.encoder import BlipEncoder

MINIATURE_TYPE = "mini"
MOST_QUESTIONS = 50
PICTURES_PER_PASS = 8
QUESTIONS_PER_PASS = 64
"""At most so many pictures and so many questions are in memory at once."""


@dataclass(frozen=True, eq=False)
class AnsweredPicture(Sequence[Answered]):
    """The answered questions about one picture; notebooks show it."""

    name: str
    image: Image.Image
    answered: list[Answered]

    def __getitem__(self, index: Any) -> Any:
        return self.answered[index]

    def __len__(self) -> int:
        return len(self.answered)

    def __repr__(self) -> str:
        return "\n".join(f"{each.question} {each.answer}" for each in self.answered)

    def _repr_html_(self) -> str:
        # Drawing is imported in functions because matplotlib takes a second.
        from lavis_ext.evaluation.answer_page import fragment_html, picture_html

        return fragment_html([picture_html(self.image, self.name, self.answered)])

    def _repr_png_(self) -> bytes:
        from lavis_ext.evaluation.picture import answer_figure

        figure: Any = answer_figure(self.image, self.name, self.answered)
        figure.canvas.draw()
        drawn, written = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())), io.BytesIO()
        # 256 colors take a third of the place in a notebook's file.
        drawn.convert("RGB").quantize().save(written, "PNG", optimize=True)
        return written.getvalue()


class Pipeline:
    """A model with all its parts, for pictures in memory.

    Args:
        model: built for answering. It is set to evaluation mode.
    """

    def __init__(self, model: PnpVqaFusion) -> None:
        self.model = model.eval()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def fuse(self, pictures: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Fused tokens of I pictures, float [I, 1+N, D] on the model's device.

        The first token of each is BLIP's class token; N patches follow row by row.
        """
        given = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
        tokens = [
            self.model.fuse({"images": self._pixels(some)})
            for some in grouped(given, PICTURES_PER_PASS)
        ]
        if not tokens:
            raise UserError("fuse: there are no pictures.")
        return torch.cat(tokens)

    def ask(
        self, picture: Image.Image, questions: str | Sequence[str], name: str = "picture"
    ) -> AnsweredPicture:
        """Answer questions about a picture, called ``name`` where it is shown.

        An answer doesn't depend on other questions. Raises UserError for an empty question, for
        none, and for more than 50.
        """
        (answered,) = self.ask_each([(name, picture)], questions)
        return answered

    def ask_each(
        self, pictures: Iterable[tuple[str, Image.Image]], questions: str | Sequence[str]
    ) -> Iterator[AnsweredPicture]:
        """Answer the same questions about each picture, several pictures at once.

        Args:
            pictures: names and pictures; read as they are needed.
            questions: see ``ask``, also for errors.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        check_questions(asked)
        at_once = max(1, min(PICTURES_PER_PASS, QUESTIONS_PER_PASS // len(asked)))
        texts = _question_texts(asked)
        for some in grouped(pictures, at_once):
            images = [image for _, image in some]
            # A question's text is its id. Random draws depend on the id alone, so neither other
            # questions nor other pictures change an answer.
            samples: QuestionBatch = {
                "images": self._pixels(images),
                "image_index": torch.arange(len(images)).repeat_interleave(len(texts)),
                "text_input": texts * len(images),
                "ids": texts * len(images),
            }
            every = Answered.all_of(asked * len(images), self.model.answer(samples))
            for number, (name, image) in enumerate(some):
                first = number * len(asked)
                yield AnsweredPicture(name, image, every[first : first + len(asked)])

    def notes(self, questions: Sequence[str]) -> list[str]:
        """Remarks on questions that are cut, and on words that the text encoder doesn't know."""
        texts = _question_texts(questions)
        return [
            *truncation_notes(self.model.blip, texts),
            *unknown_word_notes(self.model.blip, texts),
        ]

    def _pixels(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        sizes = {name: stream.image_size for name, stream in self.model.config.streams.items()}
        process = StreamImagesProcessor(StreamImagesConfig(sizes=sizes))
        processed = [process(to_rgb(picture)) for picture in pictures]
        return {
            name: torch.stack([each[name] for each in processed]).to(self.device) for name in sizes
        }


def load_pipeline(
    weights: str | None = None,
    *,
    model_type: str | None = None,
    options: Sequence[str] = (),
    device: str = "auto",
) -> Pipeline:
    """Load a model with all its parts, for pictures in memory.

    Args:
        weights: fusion weights that training wrote: a file, or the name of a repository on the
            hub. They know their config, and so which other weights they need. None stands for the
            miniature's, unless ``model_type`` is another type.
        model_type: a type, such as ``base_esam``. Without ``weights`` its fusion is untrained, and
            a warning tells what that means.
        options: ``model.KEY=VALUE``, which override values of the config.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises UserError for weights, types, options and devices that can't be used.
    """
    section = model_section(weights, model_type, options)
    PnpVqaFusion.warn_if_untrained(section)
    return build_pipeline(section, device)


def build_pipeline(section: PnpVqaFusionConfig, device: str = "auto") -> Pipeline:
    """The pipeline of a section ``model``. Untrained parts are the same in every call."""
    place = distributed.choose_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PnpVqaFusion = PnpVqaFusion.from_config(section, answering=True)
    return Pipeline(model.to(place))


def model_section(
    weights: str | None,
    model_type: str | None,
    options: Sequence[str],
    note: Any = lambda text: None,
) -> PnpVqaFusionConfig:
    """Build the section ``model``.

    Args:
        weights: fusion weights, whose config has the section they were trained with. None stands
            for the miniature's weights, unless ``model_type`` is another type.
        model_type: type whose defaults the section is merged over; with weights, their own type.
        options: ``model.KEY=VALUE``, which override both.
        note: called with a line on renamed keys, if there are any.

    Raises:
        UserError: for weights that can't be read, and for unknown types, keys and values.
    """
    flags = {"arch": "pnp_vqa_fusion", "model_type": model_type, "fusion_weights": weights}
    parsed, renamed = model_options(options, PnpVqaFusion.OLD_KEYS)
    if renamed:
        note(renamed)
    given = merge(
        OmegaConf.create({"model": {key: value for key, value in flags.items() if value}}), parsed
    )
    model = given.model
    if not model.get("fusion_weights"):
        shipped = PnpVqaFusion.SHIPPED.get(str(model.get("model_type") or MINIATURE_TYPE))
        if shipped:
            model.fusion_weights = shipped
    defaults = PnpVqaFusion.default_section(model)
    return typed(
        PnpVqaFusionConfig, merge(OmegaConf.create({"model": defaults}), given).model, "model"
    )


def check_questions(questions: Sequence[str]) -> None:
    """Raise UserError for no question, an empty one, one that is no text, and too many."""
    if not questions:
        raise UserError("There is no question.")
    for number, question in enumerate(questions, start=1):
        which = f"Question {number}" if len(questions) > 1 else "The question"
        if not is_text(question):
            raise UserError(
                f"{which} has bytes that are no text ('{shortened(question)}'); write it in UTF-8."
            )
        if not question.strip():
            raise UserError(f'{which} is empty; write it in quotes, such as "What color is it?".')
    if len(questions) > MOST_QUESTIONS:
        raise UserError(
            f"{len(questions)} questions are too many for one picture; ask at most "
            f"{MOST_QUESTIONS} at once."
        )


def truncation_notes(blip: "BlipEncoder", texts: Sequence[str]) -> list[str]:
    """A remark on each question that is longer than the text encoder takes."""
    notes = []
    for number, text in enumerate(texts, start=1):
        before = blip.truncated_questions
        input_ids, _ = blip.tokenize([text])
        if blip.truncated_questions > before:
            read = str(blip.tokenizer.decode(input_ids[0], skip_special_tokens=True))
            notes.append(
                f"question {number} is longer than the text encoder takes. It was cut after "
                f"{input_ids.shape[1]} tokens, which end in '{' '.join(read.split()[-4:])}'."
            )
    return notes


def unknown_word_notes(blip: "BlipEncoder", texts: Sequence[str]) -> list[str]:
    """A remark on words that the text encoder doesn't know, if there are any."""
    words = dict.fromkeys(word.strip(string.punctuation) for text in texts for word in text.split())
    unknown = [word for word in words if word and not _is_known(word, blip.tokenizer)]
    if not unknown:
        return []
    return [
        f"the text encoder doesn't know: {listed(unknown)}. Such words are read letter by "
        "letter or as unknown, and mean nothing to it."
    ]


def _is_known(word: str, tokenizer: Any) -> bool:
    """Whether a word has a token of its own, or is put together from more than single letters."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    pieces = [token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(ids)]
    letters = sum(len(piece) == 1 for piece in pieces)
    return tokenizer.unk_token_id not in ids and (len(pieces) < 3 or 2 * letters < len(pieces))


def _question_texts(questions: Sequence[str]) -> list[str]:
    # Not truncated here; the text encoder truncates to its own length, and a note reports that.
    words = max(len(question.split()) for question in questions)
    processor = QuestionProcessor(QuestionConfig(max_words=words))
    return [processor(question) for question in questions]
