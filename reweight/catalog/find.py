"""Finding papers by words."""

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from reweight.catalog.papers import Paper, load

__all__ = ["Hit", "search"]

# How much a word counts where it stands.
_TITLE, _NAME, _TAG, _TEXT = 4.0, 4.0, 4.0, 1.0
_LEAST = 0.2  # of the best score


class Hit(NamedTuple):
    """A paper that a search found, and how well it fits."""

    paper: Paper
    score: float


def _words(text: str) -> list[str]:
    found = re.findall(r"[a-z0-9]+", text.lower().replace("χ", "chi").replace("²", "2"))
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found]


def _weighed(paper: Paper) -> Mapping[str, float]:
    fields: list[tuple[float, Iterable[str]]] = [
        (_TITLE, [paper.title, paper.authors, paper.kind, str(paper.year), paper.arxiv, paper.id]),
        (_NAME, [path.rpartition(".")[2].replace("_", " ") for path in paper.functions]),
        (_TAG, paper.tags),
        (_TEXT, [paper.notes, paper.formula, paper.experiment, *(inspect.getdoc(f) or "" for _, f in paper.resolve())]),
    ]
    weights: dict[str, float] = {}
    for weight, texts in fields:
        for text in texts:
            for word in _words(text):
                weights[word] = max(weights.get(word, 0.0), weight)
    return weights


def search(query: str, papers: Mapping[str, Paper] | None = None) -> list[Hit]:
    """Papers in which words of the query stand, the best first.

    A word counts most in a title, a function's name or a tag, less in notes and docstrings, and the more the fewer
    papers have it. A word also finds those that begin with it. Papers with all of the words come first; those that fit
    far less than the best are left out.

    Args:
      query: a few words, such as "noisy labels".
      papers: where to look; default the whole catalog.
    """
    papers = load() if papers is None else papers
    index = {name: _weighed(paper) for name, paper in papers.items()}
    scores: dict[str, list[float]] = {name: [] for name in papers}
    for word in dict.fromkeys(_words(query)):
        matches = {
            name: max((weight for other, weight in words.items() if _matches(word, other)), default=0.0)
            for name, words in index.items()
        }
        count = sum(weight > 0 for weight in matches.values())
        rarity = math.log(1 + len(papers) / max(count, 1))
        for name, weight in matches.items():
            if weight:
                scores[name].append(weight * rarity)
    best = max((sum(found) for found in scores.values()), default=0.0)
    hits = [Hit(papers[name], sum(found)) for name, found in scores.items() if sum(found) > _LEAST * best]
    return sorted(hits, key=lambda hit: (-len(scores[hit.paper.id]), -hit.score, hit.paper.id))


def _matches(word: str, other: str) -> bool:
    return word == other or (len(word) > 3 and other.startswith(word))
