"""The processor ``question``: normalization of a question's text."""

from dataclasses import dataclass

from omegaconf import DictConfig

from lavis_ext.config.schema import option
from lavis_ext.config.typed import typed
from lavis_ext.registry import BaseProcessor, registry


@dataclass
class QuestionConfig:
    """Options of ``question``."""

    name: str = option("question", "The processor's name in the registry.")
    max_words: int = option(
        50, "Longer questions are truncated to this number of words.", at_least=1
    )
    delete: str = option(
        "", "Characters to delete first; LAVIS's blip_question deletes .!\"()*#:;~"
    )


@registry.register_processor("question")
class QuestionProcessor(BaseProcessor):
    """Lower-cases a question, collapses spaces and truncates it to ``max_words`` words.

    Characters of ``delete`` are removed first, without a space in their place.
    """

    Config = QuestionConfig

    def __init__(self, config: QuestionConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(cls, cfg: DictConfig | None = None) -> "QuestionProcessor":
        """Build from a section of LAVIS's ``text_processor``; the defaults for None.

        Raises UserError for unknown options and wrong values.
        """
        return cls(typed(cls.Config, cfg or {}, "text_processor"))

    def __call__(self, item: str) -> str:
        """The question for the text encoder."""
        kept = item.translate(dict.fromkeys(map(ord, self.config.delete)))
        return " ".join(kept.lower().split()[: self.config.max_words])
