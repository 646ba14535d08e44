"""Losses of comparisons: which of two is better, and with what probability."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks

__all__ = ["binary_fidelity", "thurstone_fidelity"]

Scores = Float[Array, "*batch"]


def _scores(function: str, **arrays: Scores | None) -> tuple[Scores, ...]:
    """The arrays in their common float dtype, all of the shape of the first."""
    given = {name: array for name, array in arrays.items() if array is not None}
    shape = jnp.shape(next(iter(given.values())))
    for name, array in given.items():
        _checks.array(function, name, array, shape=shape, kind="float")
    dtype = _checks.accumulation_dtype(*given.values())
    return tuple(jnp.asarray(array).astype(dtype) for array in given.values())


def thurstone_fidelity(
    pred_a: Scores,
    pred_b: Scores,
    human_a: Scores,
    human_b: Scores,
    human_std_a: Scores,
    human_std_b: Scores,
    pred_std_a: Scores | None = None,
    pred_std_b: Scores | None = None,
    *,
    detach_std: bool = True,
    eps: float = 1e-8,
) -> Scores:
    r"""Fidelity of the predicted and the human probability that a is better than b, per pair.

    .. math:: 1 - \sqrt{p t + \epsilon} - \sqrt{(1 - p)(1 - t) + \epsilon}

    with Thurstone's :math:`p = \Phi((s_a - s_b) / \sqrt{\sigma_a^2 + \sigma_b^2 + \epsilon})` of the predictions, and
    :math:`t` the same of the humans. The two of a pair should have been rated on one scale: in one data set.

    Args:
      pred_a: predicted scores of the first `[...]`.
      pred_b: of the second.
      human_a: mean human ratings of the first; a constant, without gradient, as all that is human.
      human_b: of the second.
      human_std_a: standard deviations of the human ratings of the first.
      human_std_b: of the second.
      pred_std_a: predicted standard deviations of the first. Default: 1 for both, without :math:`\epsilon`.
      pred_std_b: of the second.
      detach_std: whether the predicted standard deviations are constants too.
      eps: :math:`\epsilon`, in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider, in [-2 sqrt(eps), 1].

    Raises:
      ValueError: if the shapes differ, only one predicted standard deviation is given, or `eps` is out of range.

    References:
      You et al., *Teaching Large Language Models to Regress Accurate Image Quality Scores using Score Distribution*,
      2025, arXiv 2501.11561. Tsai et al., *FRank: A Ranking Method with Fidelity Loss*, 2007.
    """
    function = "losses.ranking.thurstone_fidelity"
    _checks.number(function, "eps", eps, low=0, open_low=True, open_high=True)
    if (pred_std_a is None) != (pred_std_b is None):
        missing = "pred_std_a" if pred_std_a is None else "pred_std_b"
        _checks.fail(function, missing, "missing", "an array, if the other standard deviation is given")
    left, right, *human = _scores(
        function, pred_a=pred_a, pred_b=pred_b, human_a=human_a, human_b=human_b,
        human_std_a=human_std_a, human_std_b=human_std_b, pred_std_a=pred_std_a, pred_std_b=pred_std_b,
    )  # fmt: skip
    better, worse, better_std, worse_std, *spreads = human
    width = jnp.sqrt(jnp.asarray(2, left.dtype))
    if spreads:
        one, two = jax.lax.stop_gradient(spreads) if detach_std else spreads
        width = jnp.sqrt(one**2 + two**2 + eps)
    predicted = (left - right) / width
    wanted = jax.lax.stop_gradient((better - worse) / jnp.sqrt(better_std**2 + worse_std**2 + eps))
    phi = jax.scipy.special.ndtr
    # Both tails, since 1 - p would lose the digits of the smaller one.
    yes, no = phi(predicted) * phi(wanted), phi(-predicted) * phi(-wanted)
    return 1 - jnp.sqrt(yes + eps) - jnp.sqrt(no + eps)


def binary_fidelity(pred_a: Scores, pred_b: Scores, human_a: Scores, human_b: Scores) -> Scores:
    r"""Fidelity of the predicted probability that a is better than b with whether it is, per pair.

    :math:`1 - \sqrt{\Phi((s_a - s_b) / \sqrt 2)}` where the humans prefer a, and the same of the opposite where they do
    not: it is `thurstone_fidelity` for humans who agree.

    Args:
      pred_a: predicted scores of the first `[...]`.
      pred_b: of the second.
      human_a: mean human ratings of the first; a constant, without gradient.
      human_b: of the second. Equal ratings count as better.

    Returns:
      Losses `[...]`, float32 or wider, in [0, 1].

    Raises:
      ValueError: if the shapes differ.

    References:
      Tsai et al., *FRank: A Ranking Method with Fidelity Loss*, 2007. You et al., *Teaching Large Language Models to
      Regress Accurate Image Quality Scores using Score Distribution*, 2025, arXiv 2501.11561.
    """
    left, right, better, worse = _scores(
        "losses.ranking.binary_fidelity", pred_a=pred_a, pred_b=pred_b, human_a=human_a, human_b=human_b
    )
    lead = (left - right) / jnp.sqrt(jnp.asarray(2, left.dtype))
    # The root in the logarithm, where it has a slope at 0.
    return -jnp.expm1(jax.scipy.special.log_ndtr(jnp.where(better > worse, lead, -lead)) / 2)
