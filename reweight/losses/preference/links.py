r"""Links: how a margin :math:`z` between chosen and rejected answer becomes a loss.

A pair loss is a link of a margin. The margin is the difference of a score of the two answers, times `beta`; what tells
most methods apart is which score they take (`losses.preference.pairwise`, `reference_free`), and which link. Most
links want the margin as large as can be, or large enough (`hinge`); `squared`, `reverse_kl` and `logistic` with
smoothing want it at a target, and rise again beyond. A new method with a known link is one line:

    z = 0.1 * (my_score(chosen) - my_score(rejected))
    losses = links.logistic(z, label_smoothing=0.1)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses._exponential import exp_continued
from reweight.losses.preference import _inputs

__all__ = ["discovered", "hinge", "logistic", "reverse_kl", "robust_logistic", "sigmoid", "squared"]

Margins = Float[Array, "*batch"]


def _margins(function: str, margins: Margins) -> Margins:
    _checks.array(function, "margins", margins, kind="float")
    return jnp.asarray(margins).astype(_checks.accumulation_dtype(margins))


def logistic(margins: Margins, *, label_smoothing: float = 0.0) -> Margins:
    r"""Logistic link :math:`-(1-\epsilon) \log\sigma(z) - \epsilon \log\sigma(-z)`, per pair.

    Args:
      margins: :math:`z`, any shape and scale.
      label_smoothing: :math:`\epsilon`, the share of labels taken to be flipped, in [0, 0.5).

    Returns:
      Losses of the same shape, float32 or wider; :math:`\log 2` at 0.

    Raises:
      ValueError: if `label_smoothing` is out of range.
    """
    function = "losses.preference.links.logistic"
    _inputs.smoothing(function, label_smoothing)
    z = _margins(function, margins)
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(z) - label_smoothing * jax.nn.log_sigmoid(-z)


def robust_logistic(margins: Margins, *, label_smoothing: float) -> Margins:
    r"""Unbiased logistic link :math:`[-(1-\epsilon) \log\sigma(z) + \epsilon \log\sigma(-z)] / (1 - 2\epsilon)`.

    Its expectation over labels flipped with probability :math:`\epsilon` is the logistic link of the true label. It is
    not bounded below.

    Args:
      margins: :math:`z`, any shape and scale.
      label_smoothing: :math:`\epsilon`, the rate of flipped labels, in [0, 0.5).

    Returns:
      Losses of the same shape, float32 or wider.

    Raises:
      ValueError: if `label_smoothing` is out of range.
    """
    function = "losses.preference.links.robust_logistic"
    _inputs.smoothing(function, label_smoothing)
    z = _margins(function, margins)
    wrong = label_smoothing * jax.nn.log_sigmoid(-z) - (1 - label_smoothing) * jax.nn.log_sigmoid(z)
    return wrong / (1 - 2 * label_smoothing)


def hinge(margins: Margins, *, target: float = 1.0) -> Margins:
    r"""Hinge link :math:`\max(0, c - z)`, per pair; its slope at the kink is 0.

    Args:
      margins: :math:`z`, any shape and scale.
      target: :math:`c`, the margin from which on nothing is paid, finite.

    Returns:
      Losses of the same shape, float32 or wider.

    Raises:
      ValueError: if `target` is no finite number.
    """
    function = "losses.preference.links.hinge"
    _inputs.finite(function, target=target)
    return jax.nn.relu(target - _margins(function, margins))


def squared(margins: Margins, *, target: float | Float[Array, "*batch"]) -> Margins:
    r"""Squared link :math:`(z - c)^2`, per pair: the margin is to be `target`, not more.

    Args:
      margins: :math:`z`, any shape and scale.
      target: :math:`c`, a finite number or an array that broadcasts to the margins.

    Returns:
      Losses of the same shape, float32 or wider.

    Raises:
      ValueError: if `target` is no finite number, or does not broadcast to the margins.
    """
    function = "losses.preference.links.squared"
    z = _margins(function, margins)
    if isinstance(target, jax.Array | np.ndarray):
        _checks.array(function, "target", target, kind="number")
        _checks.broadcasts(function, "target", target, z, like_name="margins")
    else:
        _inputs.finite(function, target=target)
    return (z - target) ** 2


def reverse_kl(margins: Margins, *, label_smoothing: float = 1e-3) -> Margins:
    r"""Reverse KL link :math:`KL(q \,\|\, (1-\epsilon, \epsilon))` of :math:`q = (\sigma(z), \sigma(-z))`, per pair.

    It is smallest, and 0, where :math:`\sigma(z) = 1 - \epsilon`, and tends to :math:`-\log(1-\epsilon)` and
    :math:`-\log \epsilon` far out.

    Args:
      margins: :math:`z`, any shape and scale.
      label_smoothing: :math:`\epsilon`, in (0, 0.5); without it the divergence would be infinite.

    Returns:
      Losses of the same shape, float32 or wider.

    Raises:
      ValueError: if `label_smoothing` is out of range.
    """
    function = "losses.preference.links.reverse_kl"
    _inputs.smoothing(function, label_smoothing, open_low=True)
    z = _margins(function, margins)
    epsilon = jnp.asarray(label_smoothing, z.dtype)
    right = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - jnp.log1p(-epsilon))
    return right + jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - jnp.log(epsilon))


def sigmoid(margins: Margins) -> Margins:
    r"""Sigmoid link :math:`\sigma(-z) = 1 - \sigma(z)`, per pair: bounded, so that pairs far off stop counting.

    Args:
      margins: :math:`z`, any shape and scale.

    Returns:
      Losses in [0, 1] of the same shape, float32 or wider.
    """
    return jax.nn.sigmoid(-_margins("losses.preference.links.sigmoid", margins))


def discovered(margins: Margins, *, tau: float = 0.05) -> Margins:
    r"""Link found by a language model, :math:`-(1-g) \log\sigma(z) + g\, e^{-z}` with :math:`g = \sigma(z/\tau)`.

    Logistic below 0, exponential above, with a bump in between: it is not monotone.

    Args:
      margins: :math:`z`, any shape and scale.
      tau: :math:`\tau`, width of the passage from one to the other, in (0, inf). Above 1 the second term grows
        exponentially for negative margins; it is then continued by its tangent where float32 would end.

    Returns:
      Losses of the same shape, float32 or wider.

    Raises:
      ValueError: if `tau` is out of range.

    References:
      Lu et al., *Discovering Preference Optimization Algorithms with and for Large Language Models*, 2024, arXiv
      2406.08414.
    """
    function = "losses.preference.links.discovered"
    _inputs.positive(function, tau=tau)
    z = _margins(function, margins)
    # g e^{-z} as one exponential: for very negative margins the factors are 0 and infinity.
    exponential = exp_continued(jax.nn.log_sigmoid(z / tau) - z)
    return -jax.nn.sigmoid(-z / tau) * jax.nn.log_sigmoid(z) + exponential
