"""Attacks on inputs, and how the loss at an attacked input depends on the parameters."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from reweight import _checks
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits
from reweight.losses.classification.composition import comp_sum_loss

__all__ = [
    "barrier_attack",
    "barrier_objective",
    "hypergradient",
    "margin_shift",
    "pgd_attack",
    "smooth_comp_sum_loss",
]

Inputs = Float[Array, "batch *features"]
LossFn = Callable[[Inputs], Float[Array, " batch"]]
Params = Any
Norm = Literal["linf", "l2"]
Init = Literal["uniform", "normal", "none"]
Mode = Literal["danskin", "relu", "cg"]

_NORMAL_SCALE = 1e-3
# Where a step would leave the box, it stops at this fraction of the way: the barrier is infinite on the box itself.
_INTERIOR = 0.999


def _per_example(values: Array, like: Array) -> Array:
    """A value per example, shaped to broadcast against `[batch, ...]`."""
    return values.reshape(values.shape[0], *(1,) * (like.ndim - 1))


def _dot(a: Array, b: Array) -> Float[Array, " batch"]:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=-1)


def _norms(delta: Array) -> Array:
    # Scaled by the largest entry, so that squares neither vanish nor overflow.
    top = jnp.max(jnp.abs(delta).reshape(delta.shape[0], -1), axis=-1, initial=0)
    scaled = delta / _per_example(jnp.where(top > 0, top, 1), delta)
    return _per_example(top * jnp.sqrt(_dot(scaled, scaled)), delta)


def _inputs(function: str, x: Inputs) -> Array:
    _checks.array(function, "x", x, kind="float")
    if jnp.ndim(x) < 1:
        _checks.fail(function, "x", "a scalar", "an array whose first axis is the batch")
    return jnp.asarray(x)


def _gradient(function: str, loss_fn: LossFn, x: Array) -> Callable[[Array], Array]:
    """Gradient of the sum of the losses, so that the attack on one example does not depend on the others."""

    def total(delta: Array) -> Array:
        losses = loss_fn((x + delta).astype(x.dtype))
        _checks.array(function, "loss_fn(x)", losses, shape=x.shape[:1])
        return jnp.sum(losses)

    return jax.grad(total)


def pgd_attack(
    key: PRNGKeyArray | None,
    loss_fn: LossFn,
    x: Inputs,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: Norm = "linf",
    init: Init = "uniform",
    clip: tuple[float, float] | None = (0.0, 1.0),
) -> Inputs:
    r"""Projected gradient ascent on each example's loss within a ball around the example.

    A step follows the sign of the gradient (`linf`) or the gradient divided by its norm + 1e-12 (`l2`), then projects
    on the ball, then clips to the data's range. One step of size `eps` from `init="none"` is the fast gradient (sign)
    method, which is the exact maximum for a loss that is monotone in a linear score.

    Args:
      key: for the random start; may be None with `init="none"`.
      loss_fn: from inputs `[B, ...]` to losses `[B]`, with the model in evaluation mode: each loss a function of its
        own example only.
      x: inputs `[B, ...]`, inside the range of `clip`.
      eps: radius of the ball, in [0, inf).
      step_size: in [0, inf).
      steps: how many, at least 0.
      norm: of the ball: `"linf"` (largest entry) or `"l2"`, over all axes but the first.
      init: start at a point drawn uniformly from the ball, at x plus normal noise of scale 1e-3, or at x.
      clip: range of the data, or None.

    Returns:
      Attacked inputs of the shape and dtype of `x`, without gradient.

    Raises:
      ValueError: if `x` has no batch axis, the losses are not one per example, or a hyperparameter is out of range.

    References:
      Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, 2017, arXiv 1706.06083. Goodfellow
      et al., *Explaining and Harnessing Adversarial Examples*, 2014, arXiv 1412.6572.
    """
    function = "losses.pgd_attack"
    x = jax.lax.stop_gradient(_inputs(function, x))
    _checks.number(function, "eps", eps, low=0, open_high=True)
    _checks.number(function, "step_size", step_size, low=0, open_high=True)
    _checks.number(function, "steps", steps, low=0, integer=True)
    _checks.choice(function, "norm", norm, get_args(Norm))
    _checks.choice(function, "init", init, get_args(Init))
    if clip is not None and not clip[0] < clip[1]:
        _checks.fail(function, "clip", repr(clip), "None or (low, high) with low below high")
    if init != "none" and key is None:
        _checks.fail(function, "key", "None", f"a random key with init={init!r}")
    dtype = _checks.accumulation_dtype(x)
    origin = x.astype(dtype)
    gradient = _gradient(function, loss_fn, x)

    def project(delta: Array) -> Array:
        if norm == "linf":
            delta = jnp.clip(delta, -eps, eps)
        else:
            norms = _norms(delta)
            delta = jnp.where(norms > eps, delta * (eps / jnp.where(norms > 0, norms, 1)), delta)
        return delta if clip is None else jnp.clip(origin + delta, *clip) - origin

    def step(_: Any, delta: Array) -> Array:
        slope = gradient(delta).astype(dtype)
        direction = jnp.sign(slope) if norm == "linf" else slope / (_norms(slope) + 1e-12)
        return project(delta + step_size * direction)

    match init:
        case "none":
            delta = jnp.zeros(x.shape, dtype)
        case "normal":
            assert key is not None
            delta = _NORMAL_SCALE * jax.random.normal(key, x.shape, dtype)
        case "uniform":
            assert key is not None
            delta = eps * _uniform(key, x.shape, dtype, norm)
    delta = jax.lax.fori_loop(0, steps, step, project(delta))
    return jax.lax.stop_gradient((origin + delta).astype(x.dtype))


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any, norm: Norm) -> Array:
    """Uniform in the unit ball of each example."""
    if norm == "linf":
        return jax.random.uniform(key, shape, dtype, -1, 1)
    direction_key, radius_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, shape, dtype)
    size = max(direction[:1].size, 1)
    radius = jax.random.uniform(radius_key, (shape[0],), dtype) ** (1 / size)
    norms = _norms(direction)
    return direction / jnp.where(norms > 0, norms, 1) * _per_example(radius, direction)


def margin_shift(logits: Logits, attacked_logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    r"""By how far an attack moves the margins :math:`\Delta_c = z_y - z_c` of a label, in Euclidean norm, per example.

    It is :math:`\sqrt{\|\Delta(x') - \Delta(x)\|^2 + 10^{-12}}`. An attack that maximises it starts away from x, where
    its slope is 0:

        still = jax.lax.stop_gradient(apply(params, x))
        attacked = pgd_attack(key, lambda x: margin_shift(still, apply(params, x), labels), x, eps=eps, ...)
        losses = smooth_comp_sum_loss(apply(params, x), apply(params, attacked), labels)

    Args:
      logits: of the examples `[..., C]`.
      attacked_logits: of the attacked examples `[..., C]`.
      labels: integer class ids `[...]`.

    Returns:
      Norms `[...]`, float32 or wider; 0 with zero gradient where the label is no class. The gradient flows to both
      arrays of logits.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Mao, Mohri and Zhong, *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, 2023, arXiv
      2304.07288.
    """
    return _margin_shift("losses.margin_shift", logits, attacked_logits, labels)


def _margin_shift(function: str, logits: Logits, attacked_logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    clean = _rows.rows(function, logits, labels)
    _checks.array(function, "attacked_logits", attacked_logits, shape=jnp.shape(logits), kind="float")
    moved = _rows.rows(function, attacked_logits, labels).ahead() - clean.ahead()
    return clean.losses(jnp.sqrt(jnp.sum(moved**2, axis=-1) + 1e-12))


def smooth_comp_sum_loss(
    logits: Logits, attacked_logits: Logits, labels: Labels, *, tau: float = 1.0, rho: float = 1.0, nu: float = 1.0
) -> Float[Array, "*batch"]:
    r"""Smooth adversarial comp-sum loss: `comp_sum_loss` of the clean logits plus :math:`\nu` times `margin_shift`.

    With the attack that shifts the margins most, it bounds the comp-sum loss of the example under every attack, if
    `tau` is 1 or more and `nu` is `1/rho` or more.

    Args:
      logits: of the examples `[..., C]`.
      attacked_logits: of the attacked examples `[..., C]`, see `margin_shift` for the attack.
      labels: integer class ids `[...]`.
      tau: of `comp_sum_loss`, in [0, inf).
      rho: of `comp_sum_loss`, in (0, inf).
      nu: :math:`\nu`, weight of the shift, in [0, inf); 0 is the clean loss.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class. The gradient flows to both
      arrays of logits.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Mao, Mohri and Zhong, *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, 2023, arXiv
      2304.07288.
    """
    function = "losses.smooth_comp_sum_loss"
    _checks.number(function, "nu", nu, low=0, open_high=True)
    shift = _margin_shift(function, logits, attacked_logits, labels)
    return comp_sum_loss(logits, labels, tau=tau, rho=rho) + nu * shift


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
    function = "losses.barrier_objective"
    _check_box(function, eps, barrier)
    delta = _inputs(function, delta)
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
    function = "losses.barrier_attack"
    x = jax.lax.stop_gradient(_inputs(function, x))
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
    function = "losses.hypergradient"
    x = _inputs(function, x)
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
        return _per_example(jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0), target)

    def step(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        solution, residual, direction, size = carry
        curved = product(direction)
        length = ratio(size, _dot(direction, curved))
        solution = solution + length * direction
        residual = residual - length * curved
        conditioned = residual / diagonal
        new_size = _dot(residual, conditioned)
        return solution, residual, conditioned + ratio(new_size, size) * direction, new_size

    first = target / diagonal
    start = (jnp.zeros_like(target), target, first, _dot(target, first))
    return jax.lax.fori_loop(0, steps, step, start)[0]
