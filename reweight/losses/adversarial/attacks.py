"""Attacks by projected gradient ascent."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reweight import _checks
from reweight.losses.adversarial import _examples
from reweight.losses.adversarial._examples import Inputs
from reweight.losses.classification import _rows
from reweight.losses.classification.softmax import named_cross_entropy

__all__ = ["Attack", "attack_classifier", "pgd_attack"]

LossFn = Callable[[Inputs], Float[Array, " batch"]]
LogitsFn = Callable[[Inputs], Float[Array, "batch classes"]]
Norm = Literal["linf", "l2"]
Init = Literal["uniform", "normal", "none"]

_NORMAL_SCALE = 1e-3


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
      init: start at a point drawn uniformly from the ball, at x plus normal noise of scale 1e-3, or at x. The start is
        projected and clipped as every point is; released codes with normal noise (TRADES, MTARD) take the first
        gradient before that.
      clip: range of the data, or None.

    Returns:
      Attacked inputs of the shape and dtype of `x`, without gradient.

    Raises:
      ValueError: if `x` has no batch axis, the losses are not one per example, or a hyperparameter is out of range.

    References:
      Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, 2017, arXiv 1706.06083. Goodfellow
      et al., *Explaining and Harnessing Adversarial Examples*, 2014, arXiv 1412.6572.
    """
    function = "losses.adversarial.pgd_attack"
    options: dict[str, Any] = {"eps": eps, "step_size": step_size, "steps": steps, "norm": norm, "init": init}

    def watched(x: Array) -> tuple[Array, Array]:
        losses = loss_fn(x)
        _checks.array(function, "loss_fn(x)", losses, shape=x.shape[:1])
        return losses, jnp.zeros(x.shape[:1], bool)

    return _ascend(function, key, watched, x, clip=clip, **options).inputs


class Attack(NamedTuple):
    """What an attack on a classifier found.

    Attributes:
      inputs: the attacked inputs.
      steps: the fewest steps after which an example was misclassified: 0 if it was at the start of the attack, all of
        them if it never was before the last step.
    """

    inputs: Float[Array, "batch *features"]
    steps: Int[Array, " batch"]


def attack_classifier(
    key: PRNGKeyArray | None,
    logits_fn: LogitsFn,
    x: Inputs,
    labels: Int[Array, " batch"],
    *,
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    norm: Norm = "linf",
    init: Init = "uniform",
    clip: tuple[float, float] | None = (0.0, 1.0),
) -> Attack:
    r"""`pgd_attack` on the cross-entropy of a classifier, and how many of its steps each example withstands.

    The count is the distance of an example from the decision boundary that `weights.gairat` reads as `attack_steps`. It
    comes without a further pass through the model.

    Args:
      key: for the random start; may be None with `init="none"`.
      logits_fn: from inputs `[B, ...]` to logits `[B, C]`, with the model in evaluation mode: the logits of an example
        a function of that example only.
      x: inputs `[B, ...]`, inside the range of `clip`.
      labels: integer class ids `[B]`. What is no class is not attacked, and counts as never misclassified.
      eps: radius of the ball, in [0, inf); the default is that of images with values in [0, 1].
      step_size: in [0, inf).
      steps: how many, at least 0.
      norm: as for `pgd_attack`.
      init: as for `pgd_attack`.
      clip: range of the data, or None.

    Returns:
      An `Attack`: inputs of the shape and dtype of `x`, and steps `[B]`; no gradient flows through either.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, 2017, arXiv 1706.06083. Zhang et
      al., *Geometry-aware Instance-reweighted Adversarial Training*, 2020, arXiv 2010.01736, whose released code counts
      the points of the attack that are classified rightly: the same, unless an attack loses an example again.
    """
    options: dict[str, Any] = {"eps": eps, "step_size": step_size, "steps": steps, "norm": norm, "init": init}
    return classified("losses.adversarial.attack_classifier", key, logits_fn, x, labels, clip=clip, **options)


def classified(
    function: str,
    key: PRNGKeyArray | None,
    logits_fn: LogitsFn,
    x: Inputs,
    labels: Int[Array, " batch"],
    **options: Any,
) -> Attack:
    """`attack_classifier`, whose errors name another function that is made of it."""
    x = _examples.inputs(function, x)
    _checks.array(function, "labels", labels, shape=x.shape[:1], kind="integer")

    def watched(x: Array) -> tuple[Array, Array]:
        logits = logits_fn(x)
        _checks.array(function, "logits_fn(x)", logits, shape=(*x.shape[:1], None), kind="float")
        wrong = _rows.rows(function, logits, labels).known & (jnp.argmax(logits, axis=-1) != labels)
        return named_cross_entropy(function, logits, labels, None), wrong

    return _ascend(function, key, watched, x, **options)


def _ascend(
    function: str,
    key: PRNGKeyArray | None,
    watched: Callable[[Inputs], tuple[Float[Array, " batch"], Bool[Array, " batch"]]],
    x: Inputs,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: Norm,
    init: Init,
    clip: tuple[float, float] | None,
) -> Attack:
    """Ascends the losses that `watched` gives beside the successes, of which the first is what counts."""
    x = jax.lax.stop_gradient(_examples.inputs(function, x))
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

    def total(delta: Array) -> tuple[Array, Array]:
        losses, found = watched((x + delta).astype(x.dtype))
        return jnp.sum(losses), found  # of a sum, so that the attack on one example does not depend on the others

    def project(delta: Array) -> Array:
        if norm == "linf":
            delta = jnp.clip(delta, -eps, eps)
        else:
            norms = _examples.norms(delta)
            delta = jnp.where(norms > eps, delta * (eps / jnp.where(norms > 0, norms, 1)), delta)
        return delta if clip is None else jnp.clip(origin + delta, *clip) - origin

    def step(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        delta, standing, withstood = carry
        slope, found = jax.grad(total, has_aux=True)(delta)
        slope = slope.astype(dtype)
        standing = standing & ~found
        direction = jnp.sign(slope) if norm == "linf" else slope / (_examples.norms(slope) + 1e-12)
        return project(delta + step_size * direction), standing, withstood + standing

    match init:
        case "none":
            delta = jnp.zeros(x.shape, dtype)
        case "normal":
            assert key is not None
            delta = _NORMAL_SCALE * jax.random.normal(key, x.shape, dtype)
        case "uniform":
            assert key is not None
            delta = eps * _uniform(key, x.shape, dtype, norm)
    start = (project(delta), jnp.ones(x.shape[:1], bool), jnp.zeros(x.shape[:1], jnp.int32))
    delta, _, withstood = jax.lax.fori_loop(0, steps, step, start)
    return Attack(jax.lax.stop_gradient((origin + delta).astype(x.dtype)), withstood)


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any, norm: Norm) -> Array:
    """Uniform in the unit ball of each example."""
    if norm == "linf":
        return jax.random.uniform(key, shape, dtype, -1, 1)
    direction_key, radius_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, shape, dtype)
    size = max(direction[:1].size, 1)
    radius = jax.random.uniform(radius_key, (shape[0],), dtype) ** (1 / size)
    norms = _examples.norms(direction)
    return direction / jnp.where(norms > 0, norms, 1) * _examples.per_example(radius, direction)
