r"""Losses of two classes from one score, functions of the margin :math:`m = (2y - 1) s`; and losses without a formula.

What a loss does to training is its derivative. `rank_matched_loss` takes derivatives, drawn in any way, and gives them
to the margins by rank, so that they are those of a convex loss; `ensloss` draws them at random in every step.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.losses._exponential import exp_continued
from reweight.losses.base import BatchLoss

__all__ = [
    "EnslossState",
    "binary_focal",
    "ensloss",
    "exponential",
    "hinge",
    "inverse_box_cox",
    "logistic",
    "rank_matched_loss",
    "stream_ensloss",
]

Scores = Float[Array, "*batch"]
Labels = Int[Array, "*batch"] | Bool[Array, "*batch"]
Mask = Bool[Array, "..."] | Num[Array, "..."]
Tail = Literal["zero", "sqrt", "log", "exp", "inverse", "inverse_log"]

# What calibration asks for, a derivative below 0 everywhere, where a drawn one is 0.
STRICTLY = 1e-6
# A float32 holds e^80, and a sum of as many as there are examples.
LARGEST_LOG = 80.0


def _margins(function: str, scores: Scores, labels: Labels) -> Scores:
    _checks.array(function, "scores", scores, kind="float")
    _checks.array(function, "labels", labels, shape=jnp.shape(scores))
    if not jnp.issubdtype(jnp.result_type(labels), jnp.bool_):
        _checks.array(function, "labels", labels, kind="integer")
    scores = jnp.asarray(scores).astype(_checks.accumulation_dtype(scores))
    return jnp.where(jnp.asarray(labels) != 0, scores, -scores)


def logistic(scores: Scores, labels: Labels) -> Scores:
    r"""Logistic loss :math:`\log(1 + e^{-m})`, per example.

    Args:
      scores: `[...]`, any scale; the sign is the prediction.
      labels: integers or booleans `[...]`; non-zero is the positive class.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers or booleans.
    """
    return jax.nn.softplus(-_margins("losses.binary.logistic", scores, labels))


def exponential(scores: Scores, labels: Labels) -> Scores:
    r"""Exponential loss :math:`e^{-m}`, per example; near the end of the range of floats it goes on by its tangent.

    Args:
      scores: as for `logistic`.
      labels: as for `logistic`.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers or booleans.

    References:
      Freund and Schapire, *A Decision-Theoretic Generalization of On-Line Learning and an Application to Boosting*,
      1997.
    """
    return exp_continued(-_margins("losses.binary.exponential", scores, labels))


def binary_focal(scores: Scores, labels: Labels, *, gamma: float = 2.0) -> Scores:
    r"""Focal loss :math:`(1 - p)^\gamma \log(1 + e^{-m})` with :math:`p = \sigma(m)`, per example.

    Args:
      scores: as for `logistic`.
      labels: as for `logistic`.
      gamma: :math:`\gamma`, in [0, inf); 0 is the logistic loss.

    Returns:
      Losses `[...]`, float32 or wider. The gradient flows through the factor too.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers or booleans, or `gamma` is out of range.

    References:
      Lin et al., *Focal Loss for Dense Object Detection*, 2017, arXiv 1708.02002.
    """
    function = "losses.binary.binary_focal"
    _checks.number(function, "gamma", gamma, low=0, open_high=True)
    losses = jax.nn.softplus(-_margins(function, scores, labels))
    # log(1 - p) = -m - softplus(-m) = -softplus(m): the factor in logarithms has a slope for every gamma.
    return jnp.exp(-gamma * jax.nn.softplus(_margins(function, scores, labels))) * losses


def hinge(scores: Scores, labels: Labels, *, tail: Tail = "zero") -> Scores:
    r"""Hinge loss :math:`1 - m` up to a margin of 1, and beyond it 0 or a tail, per example.

    The tails, for :math:`m > 1`: `"sqrt"` :math:`-2 \sqrt{m - 1}`, `"log"` :math:`-\log m`, `"exp"`
    :math:`-e^{-(m-1)}`, `"inverse"` :math:`1/m - 1`, `"inverse_log"` :math:`e / \log(m + e - 1) - e`. All but `"exp"`
    fall on; that one jumps down by 1 at the margin and rises, as in the released code.

    Args:
      scores: as for `logistic`.
      labels: as for `logistic`.
      tail: what comes beyond a margin of 1.

    Returns:
      Losses `[...]`, float32 or wider; negative in the tails.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers or booleans, or `tail` is unknown.

    References:
      Dai, *EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification*, 2024, arXiv
      2409.00908. The released square root and inverses are not defined for margins near 0.
    """
    function = "losses.binary.hinge"
    _checks.choice(function, "tail", tail, get_args(Tail))
    margins = _margins(function, scores, labels)
    beyond = margins > 1
    m = jnp.where(beyond, margins, 2)
    match tail:
        case "zero":
            found = jnp.zeros_like(m)
        case "sqrt":
            found = -2 * jnp.sqrt(m - 1)
        case "log":
            found = -jnp.log(m)
        case "exp":
            found = -jnp.exp(1 - m)
        case "inverse":
            found = 1 / m - 1
        case "inverse_log":
            found = jnp.e / jnp.log(m + jnp.e - 1) - jnp.e
    return jnp.where(beyond, found, 1 - jnp.where(beyond, 1, margins))


def inverse_box_cox(values: Float[Array, "..."], *, lam: float = 0.0) -> Float[Array, "..."]:
    r"""Inverse of the Box-Cox transform: :math:`(1 + \lambda z)_+^{1/\lambda}`, and :math:`e^z` at :math:`\lambda = 0`.

    Args:
      values: :math:`z`, any shape.
      lam: :math:`\lambda`, any finite number.

    Returns:
      Non-negative values, float32 or wider. Those above :math:`e^{80}`, as for negative :math:`\lambda` and large z,
      are given as this.

    Raises:
      ValueError: if the values are not floats, or `lam` is not finite.

    References:
      Box and Cox, *An Analysis of Transformations*, 1964.
    """
    function = "losses.binary.inverse_box_cox"
    _checks.array(function, "values", values, kind="float")
    _checks.number(function, "lam", lam, open_low=True, open_high=True)
    z = jnp.asarray(values).astype(_checks.accumulation_dtype(values))
    exponential = jnp.asarray(lam, z.dtype) == 0
    power = jnp.where(exponential, 1, jnp.asarray(lam, z.dtype))
    inside = power * z > -1
    logs = jnp.log1p(jnp.where(inside, power * z, 0)) / power
    logs = jnp.where(inside, logs, jnp.where(power > 0, -jnp.inf, LARGEST_LOG))
    return jnp.exp(jnp.minimum(jnp.where(exponential, z, logs), LARGEST_LOG))


def _matched(
    margins: Float[Array, " n"], kept: Bool[Array, " n"], derivatives: Float[Array, " n"], usable: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """The usable derivatives, to the margins that are kept: the smallest to the smallest."""
    derivatives = jnp.maximum(derivatives, -1)
    order = jnp.lexsort((margins, ~kept))
    sorted_derivatives = derivatives[jnp.lexsort((derivatives, ~usable))]
    own = jnp.zeros_like(derivatives).at[order].set(sorted_derivatives)
    beyond = margins > 1
    own = jnp.where(beyond, own / jnp.where(beyond, margins, 1), own)
    return jax.lax.stop_gradient(jnp.where(kept, own - STRICTLY, 0))


def _inputs(
    function: str, scores: Scores, labels: Labels, mask: Mask | None
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    margins = _margins(function, scores, labels)
    _checks.mask(function, "mask", mask, scores, like_name="scores")
    kept = _checks.kept(mask, margins.shape)
    return jnp.where(kept, margins, 0).reshape(-1), kept.reshape(-1)


def rank_matched_loss(
    scores: Scores, labels: Labels, derivatives: Float[Array, "*batch"], *, mask: Mask | None = None
) -> Scores:
    r"""The loss with given derivatives, :math:`g_i m_i`: the smallest goes to the smallest margin, per example.

    Derivatives in the order of the margins are those of a convex loss. They are cut at -1 from below, divided by the
    margin where that is above 1, which makes the loss bounded, and lowered by 1e-6, which makes it calibrated. They
    are constant, so that the gradient in the margin is the derivative; the value has no meaning beyond that. The sort
    runs over the global batch, all axes of it. Equal margins keep the order in which they come.

    Sorted derivatives of -1 where the margin is below 1, else 0, make it the hinge loss, and :math:`-\sigma(-m)` the
    logistic loss with bounded tail.

    Args:
      scores: `[...]`, any scale; the sign is the prediction.
      labels: integers or booleans `[...]`; non-zero is the positive class.
      derivatives: `[...]`, at most 0, in any order; without gradient.
      mask: boolean or 0/1, broadcast to the scores: what it hides is never read, derivatives among it. Default: all.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where masked.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers or booleans.

    References:
      Dai, *EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification*, 2024, arXiv
      2409.00908.
    """
    function = "losses.binary.rank_matched_loss"
    margins, kept = _inputs(function, scores, labels, mask)
    _checks.array(function, "derivatives", derivatives, shape=jnp.shape(scores), kind="float")
    given = jnp.where(kept, jax.lax.stop_gradient(derivatives).reshape(-1), 0).astype(margins.dtype)
    return (_matched(margins, kept, given, kept) * margins).reshape(jnp.shape(scores))


def _drawn(key: PRNGKeyArray, margins: Float[Array, " n"], kept: Bool[Array, " n"], lam: Any) -> Float[Array, " n"]:
    """Random derivatives of the margins that are kept, as many draws as there are of them."""
    # Drawn in one dtype whatever that of the scores, and the first draws: padding changes nothing.
    noise = jax.random.normal(key, margins.shape, jnp.float32).astype(margins.dtype)
    usable = jnp.arange(margins.size) < jnp.sum(kept)
    return _matched(margins, kept, -inverse_box_cox(noise, lam=lam), usable)


def ensloss(key: PRNGKeyArray, scores: Scores, labels: Labels, *, lam: float = 0.0, mask: Mask | None = None) -> Scores:
    r"""EnsLoss: `rank_matched_loss` of random derivatives :math:`-B_\lambda^{-1}(z)` with normal z, per example.

    Every step trains with another calibrated loss, which keeps a network from fitting noise as far as one loss would.
    :math:`B_\lambda^{-1}` is the `inverse_box_cox`. Under gradient accumulation use `stream_ensloss`.

    Args:
      key: for the derivatives; another one every step.
      scores: as for `rank_matched_loss`.
      labels: as for `rank_matched_loss`.
      lam: :math:`\lambda`, any finite number; 0 as in the released runs.
      mask: as for `rank_matched_loss`.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where masked.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers or booleans, or `lam` is not finite.

    References:
      Dai, *EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification*, 2024, arXiv
      2409.00908.
    """
    function = "losses.binary.ensloss"
    _checks.number(function, "lam", lam, open_low=True, open_high=True)
    margins, kept = _inputs(function, scores, labels, mask)
    return (_drawn(key, margins, kept, lam) * margins).reshape(jnp.shape(scores))


class EnslossState(NamedTuple):
    """The key from which all draws come, and how many batches have been seen."""

    key: PRNGKeyArray
    batches: Int[Array, ""]


def stream_ensloss(*, lam: float = 0.0, redraw: int | None = None) -> BatchLoss:
    r"""`ensloss` as a `BatchLoss`: other derivatives every step, matched over the global batch, exact in microbatches.

    Args:
      lam: as for `ensloss`.
      redraw: a number of batches after which :math:`\lambda` is drawn anew, evenly from [-1, 1], in place of `lam`.

    Returns:
      A `BatchLoss` with state `EnslossState`, whose `init` needs a key, of the signals `scores` and `labels`, `[B]`.

    Raises:
      ValueError: if a hyperparameter is out of range; in `init`, without a key; at the call, if a signal is missing or
        does not fit.

    References:
      Dai, *EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification*, 2024, arXiv
      2409.00908.
    """
    function = "losses.binary.stream_ensloss"
    _checks.number(function, "lam", lam, open_low=True, open_high=True)
    if redraw is not None:
        _checks.number(function, "redraw", redraw, low=1, open_high=True, integer=True)

    def init(key: PRNGKeyArray | None = None) -> EnslossState:
        if key is None:
            _checks.fail(function, "key", "missing", "a key, from which the derivatives are drawn")
        return EnslossState(key, jnp.zeros((), jnp.int32))

    def rows(given: dict[str, Any]) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
        _checks.require(function, given, ("scores", "labels"))
        _checks.array(function, "scores", given["scores"], ndim=1)
        return _inputs(function, given["scores"], given["labels"], given.get("mask"))

    def statistics(state: EnslossState, **given: Any) -> tuple[Float[Array, " n"], EnslossState]:
        margins, kept = rows(given)
        power: Any = lam
        if redraw is not None:
            own = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.batches // redraw)
            power = jax.random.uniform(own, (), jnp.float32, -1, 1)
        draws = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.batches)
        seen = state.batches + jnp.any(kept).astype(jnp.int32)
        return _drawn(draws, margins, kept, power), EnslossState(state.key, seen)

    def losses(statistics: Float[Array, " n"], **given: Any) -> Float[Array, " n"]:
        margins, _ = rows(given)
        return statistics * margins

    return BatchLoss(init, statistics, losses, ("scores", "labels"))
