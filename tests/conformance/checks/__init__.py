"""The checks of functions of arrays and of weightings. Each yields what it finds wrong, one sentence at a time.

A check is generic: it knows a function only through its case, and yields nothing where it has no meaning.
"""

from collections.abc import Callable, Mapping
from typing import Any

from conformance.checks import batches, contracts, values
from conformance.checks.comparing import Findings, invariants
from conformance.probe import Probe

CHECKS: dict[str, Callable[[Probe], Findings | None]] = {
    "jit": values.jit,
    "declared": values.declared,
    "eager": values.eager,
    "gradient and vmap": values.gradient_and_vmap,
    "bfloat16": values.bfloat16,
    "extreme": values.extreme,
    "mask": batches.mask,
    "masked is absent": batches.masked_is_absent,
    "empty mask": batches.empty_mask,
    "permutation": batches.permutation,
    "independence": batches.independence,
    "accumulation": batches.accumulation,
    "statistics": batches.statistics,
    "scope": batches.scope,
    "weights": contracts.weights,
    "state": contracts.state,
    "stop-gradient": contracts.stop_gradient,
    "sharded": batches.sharded,
    "errors": contracts.errors,
    "invariants": invariants,
}


def failures(probe: Any, checks: Mapping[str, Callable[[Any], Findings | None]] = CHECKS) -> list[str]:
    """Everything that is wrong, each finding after the name of its check."""
    found: list[str] = []
    for name, check in checks.items():
        try:
            found += [f"{name}: {finding}" for finding in check(probe) or ()]
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            found.append(f"{name}: raised {type(error).__name__}: {text}")
            if name == "jit":
                break
    return found
