"""Tokenizers of published models, from a folder, a file or the Hugging Face hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from lavis_ext.checkpoints.sources import resolve
from lavis_ext.common.errors import UserError

BERT_FILES = ("tokenizer.json", "vocab.txt")
T5_FILES = ("tokenizer.json", "spiece.model")


def read_bert_tokenizer(source: str, key: str) -> transformers.BertTokenizer:
    """Read the uncased BERT tokenizer at ``source``, the value of config key ``key``.

    Raises UserError naming ``key`` if it can't be found or isn't a BERT tokenizer.
    """
    path = resolve(source, key=key, filenames=BERT_FILES)
    tokenizer: transformers.BertTokenizer = _made(
        _bert, path, f"{key}: {path} is not a BERT tokenizer"
    )
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(tokenizer.get_vocab())
    if missing:
        raise UserError(
            f"{key}: {path} is not a BERT vocabulary; it lacks {', '.join(sorted(missing))}."
        )
    return tokenizer


def read_t5_tokenizer(source: str, key: str) -> transformers.PreTrainedTokenizerBase:
    """Read the T5 tokenizer at ``source``, the value of config key ``key``. It appends </s>.

    Raises UserError naming ``key`` if it can't be found or isn't a T5 tokenizer.
    """
    path = resolve(source, key=key, filenames=T5_FILES)
    wrong = f"{key}: {path} is not a T5 tokenizer"
    tokenizer: transformers.PreTrainedTokenizerBase = _made(_t5, path, wrong)
    missing = {"<pad>", "</s>", "<unk>"} - set(tokenizer.get_vocab())
    if missing or tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
        raise UserError(
            f"{wrong}; its vocabulary must have <pad>, </s> and <unk>, and texts must end with "
            "</s>."
        )
    return tokenizer


def _made(make: Callable[[Path], Any], path: Path, wrong: str) -> Any:
    """Make a tokenizer and try it, since one without an unknown token only fails in use."""
    try:
        tokenizer = make(path)
        tokenizer("a")
    except Exception as error:  # the type depends on where the file is damaged
        raise UserError(f"{wrong} ({error!r:.120}).") from error
    return tokenizer


def _bert(path: Path) -> transformers.BertTokenizer:
    if path.suffix == ".json":
        return transformers.BertTokenizer.from_pretrained(path.parent)
    return transformers.BertTokenizer(vocab=str(path))


def _t5(path: Path) -> transformers.PreTrainedTokenizerBase:
    if path.suffix == ".model":
        return transformers.T5Tokenizer.from_pretrained(path.parent)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
