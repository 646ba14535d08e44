"""A way back for a model that adapts without labels, once it has collapsed."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reweight import _checks
from reweight.adapt.entropy import Adapted

__all__ = ["Recovery", "RecoveryState", "recovery"]

Tree = Any  # a pytree of arrays


class RecoveryState(NamedTuple):
    """What is gone back to, and how sure the model has been.

    Attributes:
      params: the parameters of the source model.
      opt_state: the state of the optimizer that goes with them.
      average: the running mean of the losses; 0 before the first one.
      started: whether there has been one.
    """

    params: Tree
    opt_state: Any
    average: Float[Array, ""]
    started: Bool[Array, ""]


class InitFn(Protocol):
    """Remembers the source model."""

    def __call__(self, params: Tree, opt_state: Any) -> RecoveryState: ...


class UpdateFn(Protocol):
    """Takes in a step of adaptation, and gives it back, or the way back."""

    def __call__(self, state: RecoveryState, adapted: Adapted) -> tuple[Adapted, RecoveryState]: ...


class Recovery(NamedTuple):
    """A pair of pure functions: `init(params, opt_state) -> state`, `update(state, adapted) -> (adapted, state)`."""

    init: InitFn
    update: UpdateFn


def recovery(*, threshold: float = 0.2, decay: float = 0.9) -> Recovery:
    r"""Back to the source model when predictions have become too sure, as they do when all are of one class.

    The mean :math:`\bar \ell \leftarrow d\, \bar \ell + (1 - d)\, \ell` of the losses of steps starts at the first of
    them. Where it is below the threshold after a step, parameters and state of the optimizer are again those of the
    start:

        recover = adapt.recovery()
        memory = recover.init(params, opt_state)
        after = adapt.entropy_step(logits_fn, params, opt_state, optimizer)
        after, memory = recover.update(memory, after)

    The mean is not forgotten on the way back, as in the released code. There the loss is that at the perturbed
    parameters of SAR, which is a little larger; `after._replace(loss=...)` hands in any other.

    Args:
      threshold: in nats, in [0, inf); 0 never goes back. The default is that of a thousand classes.
      decay: :math:`d`, in [0, 1].

    Returns:
      A `Recovery`. `update` takes what `entropy_step` gives, and gives it back, with the `params` and `opt_state` of
      the start where it recovers. A step from which nobody learned leaves the mean as it is.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if the trees of the step do not have the structure of
        those of the start.

    References:
      Niu et al., *Towards Stable Test-Time Adaptation in Dynamic Wild World*, 2023, arXiv 2302.12400.
    """
    function = "adapt.recovery"
    _checks.number(function, "threshold", threshold, low=0, open_high=True)
    _checks.number(function, "decay", decay, low=0, high=1)

    def init(params: Tree, opt_state: Any) -> RecoveryState:
        return RecoveryState(params, opt_state, jnp.zeros(()), jnp.zeros((), bool))

    def update(state: RecoveryState, adapted: Adapted) -> tuple[Adapted, RecoveryState]:
        for name in ("params", "opt_state"):
            _checks.same_structure(function, name, getattr(adapted, name), getattr(state, name), like_name="the start")
        some = jnp.any(adapted.kept != 0)
        loss = jax.lax.stop_gradient(adapted.loss).astype(state.average.dtype)
        mean = jnp.where(state.started, decay * state.average + (1 - decay) * loss, loss)
        state = state._replace(average=jnp.where(some, mean, state.average), started=state.started | some)
        lost = state.started & (state.average < threshold)
        params, opt_state = jax.tree.map(
            lambda start, now: jnp.where(lost, start, now),
            (state.params, state.opt_state),
            (adapted.params, adapted.opt_state),
        )
        return adapted._replace(params=params, opt_state=opt_state), state

    return Recovery(init, update)
