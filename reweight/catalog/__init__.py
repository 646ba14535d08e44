"""The catalog: every paper, its functions, its experiment, and what has been verified of it.

    from reweight import catalog

    paper = catalog.load()["group_dro"]
    for hit in catalog.search("noisy labels"): ...

On the command line: `python -m reweight.catalog`.
"""

from reweight.catalog.functions import public_functions

__all__ = ["public_functions"]
