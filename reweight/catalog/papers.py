"""The entries of the catalog: one TOML file a family, one `[[paper]]` a paper."""

import dataclasses
import functools
import json
import pathlib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from reweight.catalog.functions import resolve

__all__ = ["KINDS", "LEVELS", "Paper", "Verdict", "load", "verdicts"]

KINDS = ("attack", "diagnostic", "estimator", "loss", "optimizer", "reduction", "regularizer", "schedule", "weighting")
LEVELS = ("properties", "golden", "conformance", "claim")

FOLDER = pathlib.Path(__file__).parent
# Of a checkout; an installed package comes without results.
RESULTS = FOLDER.parent.parent / "docs" / "results"


@dataclasses.dataclass(frozen=True)
class Paper:
    """What a paper proposes, where it is here, and what of it has been verified.

    Attributes:
      id: unique over all families.
      family: the name of the file.
      title: of the paper.
      authors: `Heo et al.`.
      year: of publication.
      kind: one of `KINDS`.
      functions: import paths, the most important first.
      formula: in one line.
      verified: those of `LEVELS` that a test or a stored result proves.
      arxiv: its number, or nothing.
      experiment: the module of `experiments` in which it is compared, or nothing.
      golden: files of `tests/golden` with numbers of another implementation.
      tags: words to find it by.
      notes: what a user should know.
    """

    id: str
    family: str
    title: str
    authors: str
    year: int
    kind: str
    functions: tuple[str, ...]
    formula: str
    verified: tuple[str, ...] = ()
    arxiv: str = ""
    experiment: str = ""
    golden: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notes: str = ""

    @property
    def reference(self) -> str:
        """The paper as one cites it."""
        return f"{self.authors}, {self.title}, {self.year}" + (f", arXiv {self.arxiv}" if self.arxiv else "")

    def claims(self, cited: str) -> bool:
        """Whether a claim is this paper's: it cites the id, the arXiv number or, without one, the title."""
        if self.arxiv:
            return cited == self.id or bool(re.search(rf"\b{re.escape(self.arxiv)}\b", cited))
        return cited == self.id or self.title in cited

    def resolve(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Its functions with their import paths."""
        return ((path, resolve(path)) for path in self.functions)


_TYPES: Mapping[str, type] = MappingProxyType(
    {field.name: field.type if isinstance(field.type, type) else tuple for field in dataclasses.fields(Paper)}
)
_REQUIRED = tuple(
    field.name for field in dataclasses.fields(Paper) if field.default is dataclasses.MISSING and field.name != "family"
)


def _paper(entry: Mapping[str, Any], family: str, where: str) -> Paper:
    unknown = sorted(set(entry) - (set(_TYPES) - {"family"}))
    if unknown:
        raise ValueError(
            f"{where}: unknown field {unknown[0]!r}; allowed: {', '.join(sorted(set(_TYPES) - {'family'}))}"
        )
    for name in _REQUIRED:
        if name not in entry:
            raise ValueError(f"{where}: the field {name!r} is missing")
    values: dict[str, Any] = {"family": family}
    for name, value in entry.items():
        if _TYPES[name] is tuple:
            if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
                raise ValueError(f"{where}: {name} is {value!r}; allowed: a list of strings")
            if len(set(value)) != len(value):
                raise ValueError(f"{where}: {name} holds something twice: {value!r}")
            value = tuple(value)
        elif type(value) is not _TYPES[name]:
            raise ValueError(f"{where}: {name} is {value!r}; allowed: of type {_TYPES[name].__name__}")
        values[name] = value
    paper = Paper(**values)
    for name in _REQUIRED:
        if not getattr(paper, name):
            raise ValueError(f"{where}: {name} is empty")
    if paper.kind not in KINDS:
        raise ValueError(f"{where}: kind is {paper.kind!r}; allowed: {', '.join(KINDS)}")
    for level in paper.verified:
        if level not in LEVELS:
            raise ValueError(f"{where}: verified names {level!r}; allowed: {', '.join(LEVELS)}")
    if paper.arxiv and not re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv):
        raise ValueError(f"{where}: arxiv is {paper.arxiv!r}; allowed: a number such as 2006.08217")
    if ("golden" in paper.verified) != bool(paper.golden):
        raise ValueError(
            f"{where}: 'golden' is verified by files, and files verify 'golden': one is there without the other"
        )
    if "claim" in paper.verified and not paper.experiment:
        raise ValueError(f"{where}: 'claim' is verified by an experiment, and none is named")
    return paper


def load(folder: pathlib.Path | None = None) -> dict[str, Paper]:
    """All papers by id, family by family.

    Args:
      folder: of the TOML files; default the package's own.

    Raises:
      ValueError: if a file or an entry is not as it should be; the message names the file, the entry and the field.
    """
    return dict(_load(FOLDER if folder is None else folder))


@functools.cache
def _load(folder: pathlib.Path) -> Mapping[str, Paper]:
    papers: dict[str, Paper] = {}
    for file in sorted(folder.glob("*.toml")):
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{file.name}: {error}") from error
        if set(content) != {"paper"}:
            raise ValueError(
                f"{file.name}: holds {', '.join(sorted(content)) or 'nothing'}; allowed: [[paper]] entries"
            )
        for number, entry in enumerate(content["paper"], start=1):
            where = f"{file.name}, entry {number} (id {entry.get('id', 'missing')!r})"
            paper = _paper(entry, file.stem, where)
            if paper.id in papers:
                raise ValueError(f"{where}: this id stands in {papers[paper.id].family}.toml already")
            papers[paper.id] = paper
    return MappingProxyType(papers)


class Verdict(NamedTuple):
    """What an experiment found on a paper's claim."""

    experiment: str
    claim: str
    shown: bool
    seeds: int


def verdicts(paper: Paper, results: pathlib.Path | None = None) -> list[Verdict]:
    """The stored verdicts on a paper's claims: those in the results of its experiment that cite it.

    Args:
      paper: an entry.
      results: the folder with `<experiment>.json`; default `docs/results` of a checkout.
    """
    path = (RESULTS if results is None else results) / f"{paper.experiment}.json"
    if not paper.experiment or not path.is_file():
        return []
    found = []
    for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]:
        if paper.claims(claim["paper"]):
            sign = "<" if claim.get("direction") == "lower" else ">"
            text = f"{claim['better']} {sign} {claim['than']}: {claim['metric'].replace('_', ' ')}"
            found.append(Verdict(paper.experiment, text, claim["verdict"] == "shown", claim.get("seeds", 0)))
    return found
