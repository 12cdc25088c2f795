"""WUPS of predictions, the measure of DAQUAR's papers (Malinowski and Fritz, NIPS 2014, section 4).

    pip install nltk
    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python -m benchmarks.wups PREDICTIONS.json QUESTIONS.json wordnet/usr/share/wordnet

No Python package has WordNet's files; Debian's wordnet-base has those of version 3.0, and NLTK,
which nothing else here needs, reads them. Predictions are a file of GQA's leaderboard, such as a
run's.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lavis_ext.common.files import parse_json
from lavis_ext.evaluation.gqa.predictions import read_predictions

LEXICOGRAPHERS_FILES = 45
FAR = 0.1
"""Factor of a similarity below the threshold."""
THRESHOLDS = (0.9, 0.0)


def similarity(one: str, other: str, wordnet: Any) -> float:
    """The largest Wu-Palmer similarity of two answers' noun and verb senses; 1 for equal ones."""
    if one == other:
        return 1.0
    senses = [wordnet.synsets(each.replace(" ", "_")) for each in (one, other)]
    pairs = (first.wup_similarity(second) or 0.0 for first in senses[0] for second in senses[1])
    return max(pairs, default=0.0)


def wups(similarities: Iterable[float], threshold: float) -> float:
    """Mean of similarities, of which those below ``threshold`` count a tenth."""
    scores = [each if each >= threshold else FAR * each for each in similarities]
    return sum(scores) / len(scores)


def read_wordnet(folder: Path, aside: Path) -> Any:
    """NLTK's reader of WordNet's files in ``folder``, copied to ``aside``.

    NLTK also wants the list of lexicographers' files, which Debian leaves out and WUPS doesn't use.
    """
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class English(WordNetCorpusReader):
        def map_wn(self, version: str = "wordnet") -> None:
            """No map to other versions: it serves other languages, and needs files of NLTK's."""

    nltk.data.path.append(str(aside))  # others are refused
    for path in folder.iterdir():
        shutil.copy(path, aside)
    if not (aside / "lexnames").exists():
        lines = (f"{number:02}\tfile{number}\t1\n" for number in range(LEXICOGRAPHERS_FILES))
        (aside / "lexnames").write_text("".join(lines))
    return English(str(aside), omw_reader=None)


def main() -> None:
    """Print accuracy and WUPS."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("predictions", type=Path)
    parser.add_argument("questions", type=Path, help="questions in GQA's layout, with answers")
    parser.add_argument("wordnet", type=Path, help="folder with data.noun, index.noun, ...")
    given = parser.parse_args()
    predictions = read_predictions(given.predictions)
    answers = {
        name: record["answer"] for name, record in parse_json(given.questions.read_bytes()).items()
    }
    with tempfile.TemporaryDirectory() as aside:
        wordnet = read_wordnet(given.wordnet, Path(aside))
        known = cache(lambda one, other: similarity(one, other, wordnet))
        found = [known(predictions[name], answer) for name, answer in answers.items()]
    print(f"{len(found)} questions")
    right = sum(predictions[name] == answer for name, answer in answers.items())
    print(f"accuracy  {100 * right / len(found):.1f} %")
    for threshold in THRESHOLDS:
        print(f"WUPS {threshold}  {100 * wups(found, threshold):.1f} %")


if __name__ == "__main__":
    main()
