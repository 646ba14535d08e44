"""Every public function has a case, and every case passes every check that applies to it."""

import inspect
import time

import pytest

from conformance import registry
from conformance.case import StatefulCase, TransformCase
from conformance.suite import findings
from reweight.catalog import public_functions

CASES = {registry.identity(case): case for case in registry.all_cases()}


@pytest.mark.parametrize("name", CASES)
def test_conforms(name, record_property):
    started = time.process_time()
    found = findings(CASES[name])
    record_property("conformance_seconds", time.process_time() - started)
    assert not found, f"{name} fails\n  " + "\n  ".join(found)


@pytest.mark.parametrize("path", public_functions())
def test_every_public_function_has_a_case(path):
    covered = path in registry.covered()
    assert covered or path in registry.EXEMPT, f"add a case for {path} to tests/conformance/cases/"
    assert not (covered and path in registry.EXEMPT), f"{path} has a case, and needs no exemption"


def test_exemptions_name_public_functions_and_give_a_reason():
    assert set(registry.EXEMPT) <= set(public_functions())
    assert all(len(reason.split()) >= 4 for reason in registry.EXEMPT.values())


def test_cases_are_of_public_functions_and_have_names_of_their_own():
    assert len(CASES) == len(registry.all_cases())
    strangers = [case.function.__name__ for case in CASES.values() if case.function not in registry.names()]
    assert not strangers


@pytest.mark.parametrize("path", sorted(registry.covered()))
def test_every_hyperparameter_is_refused_when_bad_or_takes_any_value(path):
    cases = [case for case in CASES.values() if registry.names().get(case.function) == path]
    accounted = set()
    for case in cases:
        accounted |= {*case.bad, *case.free}
        if not isinstance(case, TransformCase):
            accounted |= {*case.inputs(registry.rng(), 4), case.mask}
    booleans = {
        name
        for name, parameter in inspect.signature(cases[0].function).parameters.items()
        if isinstance(parameter.default, bool) or parameter.kind is inspect.Parameter.VAR_POSITIONAL
    }
    left = set(inspect.signature(cases[0].function).parameters) - accounted - booleans
    assert not left, f"say in the case of {path} what is bad for {sorted(left)}, or that nothing is"


@pytest.mark.parametrize("path", sorted(registry.covered()))
def test_defaults_are_those_that_the_case_states(path):
    cases = [case for case in CASES.values() if registry.names().get(case.function) == path]
    stated = {name: value for case in cases for name, value in case.defaults.items()}
    parameters = inspect.signature(cases[0].function).parameters.values()
    assert stated == {p.name: p.default for p in parameters if type(p.default) in (int, float)}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case, StatefulCase)])
def test_whatever_has_a_state_is_held_to_a_reference(name):
    assert CASES[name].reference is not None
