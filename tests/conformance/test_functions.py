"""Every public function has a case, and every case passes every check that applies to it."""

import pytest
from conformance import registry
from conformance.case import TransformCase
from conformance.checks import failures
from conformance.probe import Probe

CASES = {registry.identity(case): case for case in registry.all_cases()}


@pytest.mark.parametrize("name", CASES)
def test_conforms(name):
    case = CASES[name]
    found = failures(Probe(case))
    assert not found, f"{name} fails\n  " + "\n  ".join(found)
