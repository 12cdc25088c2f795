"""The question processor."""

from dataclasses import dataclass

from omegaconf import DictConfig

from lavis_ext.config.schema import option
from lavis_ext.config.typed import typed
from lavis_ext.registry import BaseProcessor, registry


@dataclass
class QuestionConfig:
    """Options of ``question``."""

    name: str = option("question", "The processor's name in the registry.")
    max_words: int = option(50, "Words after which a question is cut.", at_least=1)


@registry.register_processor("question")
class QuestionProcessor(BaseProcessor):
    """Lower-cases a question, collapses its spaces and cuts it after ``max_words`` words."""

    Config = QuestionConfig

    def __init__(self, config: QuestionConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(cls, cfg: DictConfig | None = None) -> "QuestionProcessor":
        """Build from a LAVIS processor section, or with the defaults."""
        return cls(typed(cls.Config, cfg or {}, "text_processor"))

    def __call__(self, item: str) -> str:
        """The question as the text encoder reads it."""
        return " ".join(item.lower().split()[: self.config.max_words])
