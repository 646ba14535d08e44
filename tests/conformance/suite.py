"""A case, its probe, and the checks that go with its kind."""

from collections.abc import Iterable

from conformance import checks, transforms
from conformance.case import Case, TransformCase
from conformance.probe import Probe


def findings(case: Case | TransformCase, only: Iterable[str] | None = None) -> list[str]:
    """Everything that is wrong with a function, each sentence after the name of the check that found it.

    Args:
      case: what the function says about itself.
      only: the names of the checks to run; default all.
    """
    if isinstance(case, TransformCase):
        probe, table = transforms.TransformProbe(case), transforms.CHECKS
    else:
        probe, table = Probe(case), checks.CHECKS
    chosen = table if only is None else {name: table[name] for name in only}
    return checks.failures(probe, chosen)
