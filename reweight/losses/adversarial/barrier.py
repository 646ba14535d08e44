"""Attacks kept in a box by a barrier, and the gradient that follows them as parameters change."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses.adversarial import _examples
from reweight.losses.adversarial._examples import Inputs

__all__ = ["barrier_attack", "barrier_objective", "hypergradient"]

LossFn = Callable[[Inputs], Float[Array, " batch"]]
Params = Any
Mode = Literal["danskin", "relu", "cg"]

# Where a step would leave the box, it stops at this fraction of the way: the barrier is infinite on the box itself.
_INTERIOR = 0.999


def _check_box(function: str, eps: float, barrier: float) -> None:
    _checks.number(function, "eps", eps, low=0, open_low=True, open_high=True)
    _checks.number(function, "barrier", barrier, low=0, open_low=True, open_high=True)


def barrier_objective(
    losses: Float[Array, " batch"], delta: Inputs, *, eps: float, barrier: float
) -> Float[Array, " batch"]:
    r"""What an attacker inside a box minimises when a log-barrier keeps it there, per example.

    .. math:: \tilde\ell_i = -\ell_i - c \sum_k \big[\log(\epsilon - \delta_{ik}) + \log(\epsilon + \delta_{ik})\big]

    Args:
      losses: :math:`\ell_i` at the attacked inputs `[B]`.
      delta: the attacks `[B, ...]`, strictly inside the box :math:`|\delta_{ik}| < \epsilon`. An entry on its border or
        outside counts as if it stood 1e-6 of the box's half-width inside, which keeps the value finite.
      eps: half-width of the box, in (0, inf).
      barrier: :math:`c`, in (0, inf): the smaller, the closer the minimum can be to the border.

    Returns:
      Values `[B]`, float32 or wider.

    Raises:
      ValueError: if the losses are not one per attack, or a hyperparameter is out of range.

    References:
      Sow et al., *Doubly Robust Instance-Reweighted Adversarial Training*, 2023, arXiv 2308.00311.
    """
    function = "losses.adversarial.barrier_objective"
    _check_box(function, eps, barrier)
    delta = _examples.inputs(function, delta)
    _checks.array(function, "losses", losses, shape=delta.shape[:1], kind="float")
    dtype = _checks.accumulation_dtype(losses, delta)
    share = jnp.clip(delta.astype(dtype) / eps, -1 + 1e-6, 1 - 1e-6)
    # log(eps - delta) + log(eps + delta) = 2 log eps + log(1 - share) + log(1 + share)
    walls = 2 * jnp.log(jnp.asarray(eps, dtype)) + jnp.log1p(-share) + jnp.log1p(share)
    return -losses.astype(dtype) - barrier * jnp.sum(walls.reshape(walls.shape[0], -1), axis=-1)


def barrier_attack(
    loss_fn: LossFn,
    x: Inputs,
    *,
    eps: float,
    barrier: float,
    steps: int,
    optimizer: optax.GradientTransformation,
    delta: Inputs | None = None,
) -> Inputs:
    r"""Attack in a box as a smooth problem: a few optimizer steps on `barrier_objective` from inside the box.

    The minimum moves smoothly with the model's parameters, which is what `hypergradient` differentiates. After each
    step what has left the box is put back just inside.

    Args:
      loss_fn: from inputs `[B, ...]` to losses `[B]`, each a function of its own example only.
      x: inputs `[B, ...]`.
      eps: half-width of the box around each input, in (0, inf).
      barrier: strength of the barrier, in (0, inf).
      steps: how many, at least 0.
      optimizer: an elementwise optax transform such as `optax.sgd(0.01)` or `optax.adam(0.01)`. One that mixes entries,
        such as clipping by a global norm, would let the examples of a batch change one another's attack.
      delta: where to start `[B, ...]`, moved inside the box; default the middle of the box.

    Returns:
      The attacks :math:`\delta` `[B, ...]` (not the attacked inputs), strictly inside the box, float32 or wider and
      without gradient.

    Raises:
      ValueError: if shapes do not fit, or a hyperparameter is out of range.

    References:
      Sow et al., *Doubly Robust Instance-Reweighted Adversarial Training*, 2023, arXiv 2308.00311.
    """
    function = "losses.adversarial.barrier_attack"
    x = jax.lax.stop_gradient(_examples.inputs(function, x))
    _check_box(function, eps, barrier)
    _checks.number(function, "steps", steps, low=0, integer=True)
    dtype = _checks.accumulation_dtype(x)
    if delta is None:
        delta = jnp.zeros(x.shape, dtype)
    _checks.array(function, "delta", delta, shape=x.shape, kind="float")

    def inside(value: Array) -> Array:
        return jnp.clip(value, -_INTERIOR * eps, _INTERIOR * eps)

    def total(value: Array) -> Array:
        losses = loss_fn((x + value).astype(x.dtype))
        _checks.array(function, "loss_fn(x)", losses, shape=x.shape[:1])
        return jnp.sum(barrier_objective(losses, value, eps=eps, barrier=barrier))

    def step(_: Any, carry: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        value, state = carry
        updates, state = optimizer.update(jax.grad(total)(value), state, value)
        return inside(optax.apply_updates(value, updates)), state

    start = inside(delta.astype(dtype))
    found, _ = jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))
    return jax.lax.stop_gradient(found)


def hypergradient(
    loss_fn: Callable[[Params, Inputs], Float[Array, " batch"]],
    params: Params,
    x: Inputs,
    delta: Inputs,
    *,
    eps: float,
    barrier: float,
    mode: Mode = "relu",
    weights: Float[Array, " batch"] | None = None,
    solver_steps: int = 20,
) -> Params:
    r"""Gradient of :math:`\sum_i w_i\, \ell_i(\theta, \delta_i^*(\theta))`, following the attack as parameters change.

    With :math:`\delta_i^*` the minimum of `barrier_objective` :math:`\tilde\ell_i`, the implicit function theorem gives

    .. math::
        \nabla_\theta \ell_i - \big(\nabla_\theta \nabla_\delta\, \tilde\ell_i\big) H_i^{-1}\, \nabla_\delta \ell_i,
        \qquad H_i = \nabla_\delta^2\, \tilde\ell_i

    Args:
      loss_fn: from parameters and inputs `[B, ...]` to losses `[B]`, each a function of its own example only.
      params: a tree of float arrays.
      x: inputs `[B, ...]`.
      delta: the attacks `[B, ...]`, strictly inside the box, from `barrier_attack`. The formula is evaluated there,
        whether the attack has converged or not.
      eps: half-width of the box, in (0, inf).
      barrier: strength of the barrier, in (0, inf).
      mode: `"danskin"` drops the second term, as if the attack stood still. `"relu"` takes the Hessian of the network's
        loss as zero, as for piecewise linear networks, and leaves the barrier's diagonal; the mixed derivative is
        exact. `"cg"` solves with the whole Hessian by conjugate gradients, for which it must be positive definite, as
        it is at a minimum.
      weights: :math:`w_i` `[B]`, held constant, such as `kl_dro_weights(losses) / B`. Default 1/B: the mean.
      solver_steps: iterations of `"cg"`; as many as an example has entries are enough in exact arithmetic.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if shapes do not fit, the mode is unknown, or a hyperparameter is out of range.

    References:
      Sow et al., *Doubly Robust Instance-Reweighted Adversarial Training*, 2023, arXiv 2308.00311.
    """
    function = "losses.adversarial.hypergradient"
    x = _examples.inputs(function, x)
    _checks.array(function, "delta", delta, shape=x.shape, kind="float")
    _check_box(function, eps, barrier)
    _checks.choice(function, "mode", mode, get_args(Mode))
    _checks.number(function, "solver_steps", solver_steps, low=1, integer=True)
    if weights is None:
        weights = jnp.full(x.shape[:1], 1 / max(x.shape[0], 1))
    _checks.array(function, "weights", weights, shape=x.shape[:1], kind="float")
    delta = jax.lax.stop_gradient(delta.astype(_checks.accumulation_dtype(delta)))
    fixed = jax.lax.stop_gradient(weights)

    def losses_at(theta: Params, attack: Array) -> Array:
        losses = loss_fn(theta, (x + attack).astype(x.dtype))
        _checks.array(function, "loss_fn(params, x)", losses, shape=x.shape[:1])
        return losses

    def weighted(theta: Params, attack: Array) -> Array:
        return jnp.sum(fixed * losses_at(theta, attack))

    def objective(theta: Params, attack: Array) -> Array:
        return jnp.sum(barrier_objective(losses_at(theta, attack), attack, eps=eps, barrier=barrier))

    direct, slope = jax.grad(weighted, argnums=(0, 1))(params, delta)
    if mode == "danskin":
        return direct
    diagonal = barrier * (1 / (eps - delta) ** 2 + 1 / (eps + delta) ** 2)
    if mode == "relu":
        response = slope / diagonal
    else:

        def curvature(vector: Array) -> Array:
            return jax.jvp(lambda attack: jax.grad(objective, argnums=1)(params, attack), (delta,), (vector,))[1]

        response = _conjugate_gradients(curvature, slope, diagonal, solver_steps)
    indirect = jax.grad(lambda theta: jnp.sum(jax.grad(objective, argnums=1)(theta, delta) * response))(params)
    return jax.tree.map(jnp.subtract, direct, indirect)


def _conjugate_gradients(product: Callable[[Array], Array], target: Array, diagonal: Array, steps: int) -> Array:
    """Solves a positive definite system per example, preconditioned by `diagonal`.

    The inner products are per example, so that the examples of a batch do not change one another's solution.
    """

    def ratio(a: Array, b: Array) -> Array:
        # A finished example has residual 0, and a direction without curvature can't be followed: both stand still.
        return _examples.per_example(jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0), target)

    def step(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        solution, residual, direction, size = carry
        curved = product(direction)
        length = ratio(size, _examples.dot(direction, curved))
        solution = solution + length * direction
        residual = residual - length * curved
        conditioned = residual / diagonal
        new_size = _examples.dot(residual, conditioned)
        return solution, residual, conditioned + ratio(new_size, size) * direction, new_size

    first = target / diagonal
    start = (jnp.zeros_like(target), target, first, _examples.dot(target, first))
    return jax.lax.fori_loop(0, steps, step, start)[0]
