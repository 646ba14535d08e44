"""One call for all losses of pairs, by name: for configurations and sweeps."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Num

from reweight import _checks
from reweight.losses.preference import anchored, pairwise, reference_free, transport

__all__ = ["PAIR_LOSSES", "Pairs", "pair_loss"]


class Pairs(NamedTuple):
    """What losses of pairs look at. Only the first two are needed by all; a loss takes what it knows.

    Attributes:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference.
      reference_rejected: those of the rejected answers under the reference.
      chosen_lengths: response tokens of the chosen answers.
      rejected_lengths: response tokens of the rejected answers.
      chosen_win_rate: how often the chosen answer beats an answer of the policy, for `sppo`.
      rejected_win_rate: the same of the rejected answer.
      nll: negative log-likelihood of the chosen answers, where it is not to be that of `policy_chosen`.
      mask: which pairs are there, for losses that look at the batch (`aot`); for the others it is the reduction's.
    """

    policy_chosen: Float[Array, "*batch"]
    policy_rejected: Float[Array, "*batch"]
    reference_chosen: Float[Array, "*batch"] | None = None
    reference_rejected: Float[Array, "*batch"] | None = None
    chosen_lengths: Num[Array, "*batch"] | None = None
    rejected_lengths: Num[Array, "*batch"] | None = None
    chosen_win_rate: Float[Array, "*batch"] | None = None
    rejected_win_rate: Float[Array, "*batch"] | None = None
    nll: Float[Array, "*batch"] | None = None
    mask: Bool[Array, "*batch"] | Num[Array, "*batch"] | None = None


PAIR_LOSSES: Mapping[str, Callable[..., Float[Array, "*batch"]]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            pairwise.dpo,
            pairwise.dpo_norm,
            pairwise.robust_dpo,
            pairwise.hinge,
            pairwise.ipo,
            pairwise.exo_pair,
            pairwise.discopop,
            pairwise.r_dpo,
            pairwise.dpop,
            anchored.nca_pair,
            anchored.bco_pair,
            anchored.sppo_hard,
            anchored.sppo,
            anchored.apo_zero,
            anchored.apo_down,
            transport.aot,
            transport.aot_unpaired,
            reference_free.slic,
            reference_free.cpo,
            reference_free.simpo,
            reference_free.alphapo,
            reference_free.orpo,
            reference_free.rrhf,
        )
    }
)


def pair_loss(name: str, pairs: Pairs, **hyper: Any) -> Float[Array, "*batch"]:
    """The loss of each pair by the method's name: `PAIR_LOSSES[name]` on the fields that it takes.

    Args:
      name: a key of `PAIR_LOSSES`, such as `"simpo"`.
      pairs: log-probs and whatever else the method needs; what it does not know is ignored.
      **hyper: its hyperparameters, such as `beta`; default the method's own.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if there is no such loss, a field that it needs is None, or it has no such hyperparameter; and what
        the loss itself refuses.
    """
    function = "losses.preference.pair_loss"
    _checks.choice(function, "name", name, tuple(PAIR_LOSSES))
    parameters = inspect.signature(PAIR_LOSSES[name]).parameters
    fields = {field: getattr(pairs, field) for field in Pairs._fields if field in parameters}
    for field, value in fields.items():
        if value is None and parameters[field].default is inspect.Parameter.empty:
            _checks.fail(function, f"pairs.{field}", "None", f"an array, which {name} needs")
    own = {parameter: parameters[parameter].default for parameter in parameters if parameter not in fields}
    for argument in hyper:
        if argument in Pairs._fields:
            _checks.fail(function, argument, "given as a hyperparameter", f"a field of `pairs`: pairs.{argument}")
        if argument not in own:
            _checks.fail(function, argument, f"no hyperparameter of {name}", ", ".join(own) or "none")
    for argument, default in own.items():
        if default is inspect.Parameter.empty and argument not in hyper:
            _checks.fail(function, argument, "missing", f"a value, for which {name} has no default")
    return PAIR_LOSSES[name](**fields, **hyper)
