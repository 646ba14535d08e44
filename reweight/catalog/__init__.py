"""The catalog: every paper, its functions, its experiment, and what has been verified of it.

    from reweight import catalog

    paper = catalog.load()["group_dro"]
    [hit.paper.id for hit in catalog.search("noisy labels")]

On the command line: `python -m reweight.catalog`.
"""

from reweight.catalog.find import Hit, search
from reweight.catalog.functions import INFRASTRUCTURE_PACKAGES, public_functions, resolve
from reweight.catalog.papers import KINDS, LEVELS, Paper, Verdict, load, verdicts

__all__ = [
    "INFRASTRUCTURE_PACKAGES",
    "KINDS",
    "LEVELS",
    "Hit",
    "Paper",
    "Verdict",
    "load",
    "public_functions",
    "resolve",
    "search",
    "verdicts",
]
