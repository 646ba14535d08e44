"""Losses from aggregate responses: only the mean response of a bag of examples is known.

A bag is an integer id, so that bags may be of any size, lie in any order and straddle devices.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks, reduce
from reweight.losses.base import BatchLoss

__all__ = [
    "bag_loss",
    "bag_sums",
    "batch_interpolated",
    "instance_loss",
    "interpolated_loss",
    "interpolated_ridge",
    "private_bag_means",
]

Link = Literal["squared", "logistic"]
Rows = Float[Array, " batch"]
Ids = Int[Array, " batch"]
Mask = Bool[Array, " batch"] | Num[Array, " batch"]


class _Bags(NamedTuple):
    """Ids of the examples, that past the last bag for those that are in none; and the sizes of the bags."""

    ids: Ids
    known: Bool[Array, " batch"]
    sizes: Float[Array, " bags"]

    def sums(self, values: Float[Array, "batch ..."]) -> Float[Array, "bags ..."]:
        known = self.known.reshape((-1,) + (1,) * (values.ndim - 1))
        return jax.ops.segment_sum(jnp.where(known, values, 0), self.ids, self.sizes.size)

    def means(self, values: Float[Array, "batch ..."]) -> Float[Array, "bags ..."]:
        sizes = self.sizes.reshape((-1,) + (1,) * (values.ndim - 1))
        return reduce.finish(reduce.Parts(self.sums(values), sizes))

    def log_means(self, logs: Rows) -> Float[Array, " bags"]:
        """The logarithm of the mean of the exponentials; 0 for an empty bag."""
        logs = jnp.where(self.known, logs, 0)
        top = jax.ops.segment_max(jax.lax.stop_gradient(logs), self.ids, self.sizes.size)
        top = jnp.where(self.sizes > 0, top, 0)
        total = self.sums(jnp.exp(logs - self.of_rows(top)))
        some = self.sizes > 0
        return top + jnp.log(jnp.where(some, total, 1)) - jnp.log(jnp.where(some, self.sizes, 1))

    def of_rows(self, values: Float[Array, " bags"]) -> Rows:
        """Of each example the value of its bag; 0 for those in none."""
        return jnp.where(self.known, values[jnp.where(self.known, self.ids, 0)], 0)


def _bags(function: str, bag_ids: Ids, num_bags: int, mask: Mask | None, like: Any, like_name: str) -> _Bags:
    _checks.array(function, "bag_ids", bag_ids, shape=jnp.shape(like)[:1], kind="integer")
    _checks.mask(function, "mask", mask, bag_ids, like_name=f"the first axis of {like_name}")
    known = (bag_ids >= 0) & (bag_ids < num_bags) & _checks.kept(mask, jnp.shape(bag_ids))
    ids = jnp.where(known, bag_ids, num_bags)
    sizes = jax.ops.segment_sum(known.astype(_checks.accumulation_dtype(like)), ids, num_bags)
    return _Bags(ids, known, sizes)


def _inputs(
    function: str, predictions: Rows, bag_ids: Ids, bag_means: Array, loss: Link, mask: Mask | None
) -> tuple[tuple[Rows, ...], _Bags, Float[Array, " bags"]]:
    """What the loss needs of each prediction, the bags, and the responses."""
    _checks.choice(function, "loss", loss, get_args(Link))
    _checks.array(function, "predictions", predictions, ndim=1, kind="float")
    _checks.array(function, "bag_means", bag_means, ndim=1, kind="number")
    bags = _bags(function, bag_ids, jnp.shape(bag_means)[0], mask, predictions, "predictions")
    dtype = _checks.accumulation_dtype(predictions, bag_means)
    return _needed(predictions, bags.known, loss, dtype), bags, jnp.asarray(bag_means).astype(dtype)


def _needed(predictions: Rows, known: Array, loss: Link, dtype: Any) -> tuple[Rows, ...]:
    rows = jnp.where(known, predictions, 0).astype(dtype)
    return (rows,) if loss == "squared" else (jax.nn.log_sigmoid(rows), jax.nn.log_sigmoid(-rows))


def _averaged(needed: tuple[Rows, ...], bags: _Bags, loss: Link) -> tuple[Array, ...]:
    """The same of the mean prediction of each bag: means of probabilities, not of logits."""
    return tuple(bags.means(x) if loss == "squared" else bags.log_means(x) for x in needed)


def _cost(needed: tuple[Array, ...], responses: Array) -> Array:
    if len(needed) == 1:
        return (needed[0] - responses) ** 2
    yes, no = needed
    return -(responses * yes + (1 - responses) * no)


def bag_sums(
    values: Float[Array, "batch ..."], bag_ids: Ids, *, num_bags: int, mask: Mask | None = None
) -> reduce.Parts:
    """Sums over the examples of each bag, and the sizes of the bags: their ratio is the mean of the bag.

    Args:
      values: one row an example `[B, ...]`.
      bag_ids: of the examples `[B]`, in 0..M-1; an example with another id is in no bag.
      num_bags: M, static.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      `Parts` of the sums `[M, ...]` and the sizes `[M, ...]`, float32 or wider, which add up over shards and
      microbatches; `reduce.finish` gives the means, 0 for an empty bag.

    Raises:
      ValueError: if the shapes do not fit, ids are not integers, or `num_bags` is below 1.
    """
    function = "losses.aggregate.bag_sums"
    _checks.array(function, "values", values, kind="float")
    if jnp.ndim(values) < 1:
        _checks.fail(function, "values", "a scalar", "an array whose first axis is the batch")
    _checks.number(function, "num_bags", num_bags, low=1, open_high=True, integer=True)
    bags = _bags(function, bag_ids, num_bags, mask, values, "values")
    total = bags.sums(jnp.asarray(values).astype(_checks.accumulation_dtype(values)))
    sizes = bags.sizes.reshape((-1,) + (1,) * (total.ndim - 1))
    return reduce.Parts(total, jnp.broadcast_to(sizes, total.shape))


def bag_loss(
    predictions: Rows,
    bag_ids: Ids,
    bag_means: Num[Array, " bags"],
    *,
    loss: Link = "squared",
    mask: Mask | None = None,
) -> Float[Array, " bags"]:
    r"""Loss of the mean prediction of a bag, :math:`\ell(\bar y_a, \bar f_a)`, per bag.

    Args:
      predictions: of the examples `[B]`: responses for the squared loss, logits for the logistic one.
      bag_ids: of the examples `[B]`, in 0..M-1; an example with another id is in no bag.
      bag_means: mean responses of the bags `[M]`; in [0, 1] for the logistic loss.
      loss: `"squared"`, or `"logistic"`: the cross-entropy of the mean probability of the bag.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      Losses `[M]`, float32 or wider; 0 with zero gradient for an empty bag, which should not count in a mean over bags.

    Raises:
      ValueError: if the shapes do not fit, ids are not integers, or `loss` is unknown.

    References:
      Javanmard et al., *Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions*, 2024, arXiv
      2401.11081.
    """
    needed, bags, responses = _inputs("losses.aggregate.bag_loss", predictions, bag_ids, bag_means, loss, mask)
    return jnp.where(bags.sizes > 0, _cost(_averaged(needed, bags, loss), responses), 0)


def instance_loss(
    predictions: Rows,
    bag_ids: Ids,
    bag_means: Num[Array, " bags"],
    *,
    loss: Link = "squared",
    mask: Mask | None = None,
) -> Rows:
    r"""Loss of each prediction against the mean response of its bag, :math:`\ell(\bar y_a, f_i)`, per example.

    The mean over a bag is no less than `bag_loss`. For the squared loss it is more by the variance of the predictions
    in the bag, so that predictions are drawn together.

    Args:
      predictions: as for `bag_loss`.
      bag_ids: as for `bag_loss`.
      bag_means: as for `bag_loss`.
      loss: as for `bag_loss`.
      mask: as for `bag_loss`.

    Returns:
      Losses `[B]`, float32 or wider; 0 with zero gradient for an example in no bag.

    Raises:
      ValueError: if the shapes do not fit, ids are not integers, or `loss` is unknown.

    References:
      Javanmard et al., *Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions*, 2024, arXiv
      2401.11081.
    """
    needed, bags, responses = _inputs("losses.aggregate.instance_loss", predictions, bag_ids, bag_means, loss, mask)
    return jnp.where(bags.known, _cost(needed, bags.of_rows(responses)), 0)


def interpolated_loss(
    predictions: Rows,
    bag_ids: Ids,
    bag_means: Num[Array, " bags"],
    *,
    rho: float,
    loss: Link = "squared",
    mask: Mask | None = None,
) -> Float[Array, " bags"]:
    r"""Between the loss of the bag and those of its instances, per bag of k.

    .. math:: (1-\rho) \ell(\bar y_a, \bar f_a) + \frac{\rho}{k} \sum_{i \in a} \ell(\bar y_a, f_i)

    For the squared loss it is the loss of the bag and :math:`\rho` times the variance of the predictions in the bag:
    :math:`\rho` is how strongly they are drawn together.

    Args:
      predictions: as for `bag_loss`.
      bag_ids: as for `bag_loss`.
      bag_means: as for `bag_loss`.
      rho: :math:`\rho`, in [0, 1]; 0 is `bag_loss`, 1 the mean of `instance_loss` over the bag.
      loss: as for `bag_loss`.
      mask: as for `bag_loss`.

    Returns:
      Losses `[M]`, float32 or wider; 0 with zero gradient for an empty bag, which should not count in a mean over bags.

    Raises:
      ValueError: if the shapes do not fit, ids are not integers, `loss` is unknown, or `rho` is out of range.

    References:
      Javanmard et al., *Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions*, 2024, arXiv
      2401.11081.
    """
    function = "losses.aggregate.interpolated_loss"
    _checks.number(function, "rho", rho, low=0, high=1)
    needed, bags, responses = _inputs(function, predictions, bag_ids, bag_means, loss, mask)
    bag = jnp.where(bags.sizes > 0, _cost(_averaged(needed, bags, loss), responses), 0)
    return (1 - rho) * bag + rho * bags.means(_cost(needed, bags.of_rows(responses)))


class _OwnBag(NamedTuple):
    """Of each example: what the loss needs of its bag's mean prediction, and its share times the number of examples."""

    averages: tuple[Rows, ...]
    shares: Rows


def batch_interpolated(num_bags: int, *, rho: float, loss: Link = "squared") -> BatchLoss:
    r"""`interpolated_loss` as a `BatchLoss`: bags may be cut by microbatches.

    The mean over the batch has value and gradient of the mean of `interpolated_loss` over the bags that are not empty.
    An example's loss stands for its share of its bag; a weight on it scales this share.

    Args:
      num_bags: M, static.
      rho: as for `interpolated_loss`.
      loss: as for `bag_loss`.

    Returns:
      A `BatchLoss` without state, of the signals `predictions`, `bag_ids` and `responses`, all `[B]`, where `responses`
      holds for each example the mean response of its bag.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Javanmard et al., *Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions*, 2024, arXiv
      2401.11081.
    """
    function = "losses.aggregate.batch_interpolated"
    _checks.number(function, "num_bags", num_bags, low=1, open_high=True, integer=True)
    _checks.number(function, "rho", rho, low=0, high=1)
    _checks.choice(function, "loss", loss, get_args(Link))
    names = ("predictions", "bag_ids", "responses")

    def rows(given: dict[str, Any]) -> tuple[tuple[Rows, ...], _Bags, Rows]:
        _checks.require(function, given, names)
        predictions, ids, responses = (given[name] for name in names)
        _checks.array(function, "predictions", predictions, ndim=1, kind="float")
        _checks.array(function, "responses", responses, shape=jnp.shape(predictions), kind="number")
        bags = _bags(function, ids, num_bags, given.get("mask"), predictions, "predictions")
        dtype = _checks.accumulation_dtype(predictions, responses)
        needed = _needed(predictions, bags.known, loss, dtype)
        return needed, bags, jnp.where(bags.known, responses, 0).astype(dtype)

    def statistics(state: tuple[()], **given: Any) -> tuple[_OwnBag, tuple[()]]:
        needed, bags, _ = rows(given)
        averages = tuple(bags.of_rows(x) for x in _averaged(needed, bags, loss))
        examples = jnp.sum(_checks.kept(given.get("mask"), bags.known.shape))
        filled = jnp.maximum(jnp.sum(bags.sizes > 0), 1)
        shares = bags.of_rows(examples / (filled * jnp.maximum(bags.sizes, 1)))
        return _OwnBag(averages, shares), state

    def losses(statistics: _OwnBag, **given: Any) -> Rows:
        needed, bags, responses = rows(given)
        moved = tuple(map(_moved, statistics.averages, needed))
        costs = (1 - rho) * _cost_to_first_order(statistics.averages, moved, responses) + rho * _cost(needed, responses)
        return jnp.where(bags.known, statistics.shares * costs, 0)

    def _moved(average: Rows, own: Rows) -> Rows:
        """How an example moves what is needed of its bag, times the size of the bag: 0, with a gradient."""
        own = own if loss == "squared" else jnp.exp(own - average)
        return own - jax.lax.stop_gradient(own)

    return BatchLoss(lambda key=None: (), statistics, losses, names)


def _cost_to_first_order(averages: tuple[Rows, ...], moved: tuple[Rows, ...], responses: Rows) -> Rows:
    if len(averages) == 1:
        return (averages[0] - responses) ** 2 + 2 * (averages[0] - responses) * moved[0]
    return _cost(tuple(x + y for x, y in zip(averages, moved, strict=True)), responses)


def interpolated_ridge(
    features: Float[Array, "batch features"],
    bag_ids: Ids,
    bag_means: Num[Array, " bags"],
    *,
    rho: float,
    mask: Mask | None = None,
) -> Float[Array, " features"]:
    r"""The linear model with the least mean `interpolated_loss` over the bags, in closed form: coefficients, `[d]`.

    With the mean features :math:`\bar x_a` of a bag, and the mean :math:`C_a` of its :math:`x_i x_i^T`, it solves

    .. math:: \sum_a ((1-\rho) \bar x_a \bar x_a^T + \rho C_a) \theta = \sum_a \bar x_a \bar y_a

    and of several solutions it is the one of least norm.

    Args:
      features: of the examples `[B, d]`.
      bag_ids: as for `bag_loss`.
      bag_means: as for `bag_loss`.
      rho: as for `interpolated_loss`.
      mask: as for `bag_loss`.

    Returns:
      Coefficients `[d]`, float32 or wider; zeros if all is masked.

    Raises:
      ValueError: if the shapes do not fit, ids are not integers, or `rho` is out of range.

    References:
      Javanmard et al., *Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions*, 2024, arXiv
      2401.11081.
    """
    function = "losses.aggregate.interpolated_ridge"
    _checks.number(function, "rho", rho, low=0, high=1)
    _checks.array(function, "features", features, ndim=2, kind="float")
    _checks.array(function, "bag_means", bag_means, ndim=1, kind="number")
    bags = _bags(function, bag_ids, jnp.shape(bag_means)[0], mask, features, "features")
    dtype = _checks.accumulation_dtype(features, bag_means)
    rows = jnp.where(bags.known[:, None], features, 0).astype(dtype)
    responses = jnp.where(bags.sizes > 0, bag_means, 0).astype(dtype)
    # Rows in place of normal equations, whose condition is the square.
    apart, together = (
        jnp.sqrt(rho * bags.of_rows(1 / jnp.maximum(bags.sizes, 1))),
        jnp.sqrt(jnp.asarray(1 - rho, dtype)),
    )
    design = jnp.concatenate([together * bags.means(rows), apart[:, None] * rows])
    targets = jnp.concatenate([together * responses, apart * bags.of_rows(responses)])
    return jnp.linalg.lstsq(design, targets)[0]


def private_bag_means(
    key: PRNGKeyArray,
    responses: Float[Array, " batch"],
    bag_ids: Ids,
    *,
    num_bags: int,
    epsilon: float,
    clip: float,
    mask: Mask | None = None,
) -> Float[Array, " bags"]:
    r"""Mean responses of bags of k, clipped to :math:`[-c, c]`, with Laplace noise of scale :math:`2c/(k\epsilon)`.

    One response moves the mean of its bag of k by 2c/k at most, so that Laplace noise makes the responses private to
    :math:`\epsilon`. Sizes and members of the bags count as public.

    Args:
      key: for the noise.
      responses: of the examples `[B]`.
      bag_ids: as for `bag_loss`.
      num_bags: M, static.
      epsilon: :math:`\epsilon`, the loss of privacy, in (0, inf].
      clip: :math:`c`, in (0, inf). The paper lets it grow with the logarithm of the number of examples.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      Mean responses `[M]`, float32 or wider; 0 for an empty bag.

    Raises:
      ValueError: if the shapes do not fit, ids are not integers, or a hyperparameter is out of range.

    References:
      Javanmard et al., *Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions*, 2024, arXiv
      2401.11081.
    """
    function = "losses.aggregate.private_bag_means"
    _checks.number(function, "epsilon", epsilon, low=0, open_low=True)
    _checks.number(function, "clip", clip, low=0, open_low=True, open_high=True)
    _checks.number(function, "num_bags", num_bags, low=1, open_high=True, integer=True)
    _checks.array(function, "responses", responses, ndim=1, kind="float")
    bags = _bags(function, bag_ids, num_bags, mask, responses, "responses")
    clipped = jnp.clip(jnp.asarray(responses).astype(_checks.accumulation_dtype(responses)), -clip, clip)
    scale = 2 * clip / (jnp.maximum(bags.sizes, 1) * epsilon)
    noise = jax.random.laplace(key, (num_bags,), clipped.dtype)
    return jnp.where(bags.sizes > 0, bags.means(clipped) + scale * noise, 0)
