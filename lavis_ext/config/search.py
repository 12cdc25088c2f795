"""Find config keys by words, also by other words than the key's own."""

import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches

from lavis_ext.common.errors import nearest

SYNONYMS = (
    ("freq", "frequency", "every", "interval", "period"),
    ("lr", "learning", "rate"),
    ("max", "maximum", "most", "limit", "upper"),
    ("min", "minimum", "least", "lower"),
    ("num", "number", "count", "many"),
    ("eval", "evaluation", "evaluate", "val", "valid", "validation"),
    ("dir", "folder", "directory", "path"),
    ("weight", "checkpoint", "ckpt", "pretrained"),
    ("worker", "thread", "process"),
    ("step", "iteration", "iter", "update"),
    ("amp", "precision", "fp16", "bf16", "bfloat16", "half", "dtype"),
    ("grad", "gradient"),
    ("accum", "accumulate", "accumulation"),
    ("clip", "clipping", "norm"),
    ("image", "picture", "photo"),
    ("size", "number"),
    ("sched", "scheduler", "schedule"),
    ("option", "setting", "argument", "flag"),
    ("stop", "stopping", "patience"),
    ("small", "subset", "sample", "subsample"),
    ("resume", "continue", "restart"),
    ("log", "logging", "print"),
    ("width", "dim", "hidden"),
    ("beam", "search"),
)
"""Words that others use for the same thing, in the singular."""
FILLERS = frozenset(("a", "and", "at", "by", "for", "how", "in", "is", "of", "on", "the", "to"))
TYPING_ERROR, LIKE = 0.9, 0.86
"""Similarity (difflib) of a key and of a word to the same with a letter wrong."""
IN_HELP = 0.5
"""Weight of a word in the help; in the name it is 1."""
ENOUGH = 0.5
"""Share of the query's words, by weight, that a result has at least."""


def ranked(query: str, helps: Mapping[str, str]) -> list[str]:
    """Names whose words, or whose help's, are those of ``query``, best first.

    Rare words count more. Words are the same in singular and plural, with a letter wrong, and if
    they are in one group of ``SYNONYMS``.

    Args:
        query: words, or a name such as ``log_every_steps``.
        helps: help text by name.
    """
    wanted = [_meanings(word) for word in dict.fromkeys(_words(query))]
    own = {name: _words(name) for name in helps}
    texts = {name: _words(text) for name, text in helps.items()}
    scores = dict.fromkeys(helps, 0.0)
    highest = 0.0
    for meanings in wanted:
        shares = {
            name: _has(own[name], meanings) + IN_HELP * _has(texts[name], meanings)
            for name in helps
        }
        having = sum(share > 0 for share in shares.values())
        rarity = 1 + math.log(len(helps) / having) if having else 1.0
        highest += rarity
        for name, share in shares.items():
            scores[name] += share * rarity
    kept = [name for name in helps if scores[name] >= ENOUGH * highest > 0]
    return sorted(kept, key=lambda name: (-scores[name], len(own[name])))


def did_you_mean(name: str, helps: Mapping[str, str]) -> str:
    """``" Did you mean 'x'?"``: the nearest name by letters or, failing that, by words."""
    if get_close_matches(name, helps, n=1, cutoff=TYPING_ERROR):
        return nearest(name, helps)
    found = ranked(name, helps)
    return f" Did you mean '{found[0]}'?" if found else nearest(name, helps)


def _words(text: str) -> list[str]:
    """Lower-case words in the singular."""
    words = re.findall(r"[a-z]+\d*|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())
    singular = [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words]
    return [word for word in singular if word not in FILLERS]


def _meanings(word: str) -> set[str]:
    return {word}.union(*(group for group in SYNONYMS if word in group))


def _has(words: Sequence[str], meanings: set[str]) -> bool:
    if not meanings.isdisjoint(words):
        return True
    return any(
        len(meaning) > 4 and SequenceMatcher(None, word, meaning).ratio() >= LIKE
        for meaning in meanings
        for word in words
        if len(word) > 4
    )
