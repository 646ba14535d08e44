"""Preference losses with a statistic of the global batch or of the stream, as `BatchLoss`.

    loss = losses.preference.beta_dpo(beta=0.1)
    step = train.make_step(loss_fn, optimizer, loss=loss, microbatches=4)
    state = train.init_state(params, None, optimizer, key=key, loss=loss)

where `loss_fn` gives the signals, called as the arguments of the pure losses: `LossOutput(signals={"policy_chosen": …,
…})`. The statistic comes once a step from the whole batch, so that neither microbatches nor the mesh change what is
learned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reweight import _checks
from reweight.losses.base import BatchLoss
from reweight.losses.preference import _inputs, links, transport, unpaired

__all__ = [
    "BetaDPOState",
    "BetaDPOStatistics",
    "MatchedMargins",
    "RunningMean",
    "batch_aot",
    "batch_aot_unpaired",
    "batch_kto",
    "beta_dpo",
    "stream_bco",
]

JUDGED = ("policy", "reference", "desirable")
MISMATCHED = ("policy_mismatched", "reference_mismatched")
PAIRED = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
FLAGS = ("desirable", "selected")


def _rows(function: str, signals: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Array], Array]:
    """The signals of these names, with zeros where masked, and the mask as booleans."""
    _checks.require(function, signals, names)
    _checks.array(function, names[0], signals[names[0]], ndim=1)
    floats = {name: signals[name] for name in names if name not in FLAGS}
    rows = dict(zip(floats, _inputs.answers(function, **floats), strict=True))
    like = rows[names[0]]
    for name in set(names) - set(floats):
        _checks.array(function, name, signals[name], shape=like.shape)
        rows[name] = jnp.asarray(signals[name]) != 0
    mask = signals.get("mask")
    _checks.mask(function, "mask", mask, like, like_name=names[0])
    kept = _checks.kept(mask, like.shape)
    return {name: jnp.where(kept, row, jnp.zeros_like(row)) for name, row in rows.items()}, kept


def _stateless(key: PRNGKeyArray | None = None) -> tuple[()]:
    del key
    return ()


def batch_kto(*, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> BatchLoss:
    """KTO with the reference point of the global batch: `kto` at `kto_reference_point`.

    Args:
      beta: how fast gains and losses saturate, in (0, inf).
      desirable_weight: of good answers, in [0, inf); see `kto` for what the authors advise.
      undesirable_weight: of bad answers, in [0, inf).

    Returns:
      A `BatchLoss` without state, of the signals `policy`, `reference`, `desirable`, and, for the reference point,
      `policy_mismatched` and `reference_mismatched`: log-probs of another example's answer under this prompt.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Ethayarajh et al., *KTO: Model Alignment as Prospect Theoretic Optimization*, 2024, arXiv 2402.01306.
    """
    function = "losses.preference.batch_kto"
    _inputs.positive(function, beta=beta)
    _inputs.non_negative(function, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)

    def statistics(state: tuple[()], **signals: Any) -> tuple[Float[Array, ""], tuple[()]]:
        rows, kept = _rows(function, signals, (*JUDGED, *MISMATCHED))
        point = unpaired.kto_reference_point(rows["policy_mismatched"], rows["reference_mismatched"], mask=kept)
        return point, state

    def losses(statistics: Float[Array, ""], **signals: Any) -> Float[Array, " batch"]:
        rows, kept = _rows(function, signals, JUDGED)
        values = unpaired.kto(
            **rows,
            reference_point=statistics,
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )
        return jnp.where(kept, values, 0)

    return BatchLoss(_stateless, statistics, losses, (*JUDGED, *MISMATCHED))


class RunningMean(NamedTuple):
    """How many numbers were seen, and their sum; each with what its rounding lost, so that no count is too large.

    In float32 a plain running mean of 10^8 numbers hardly moves, and a count ends at 2^24.
    """

    seen: Float[Array, "2"]
    total: Float[Array, "2"]


def _add(running: Float[Array, "2"], value: Array) -> Float[Array, "2"]:
    """A sum in two floats, the second of which is the rounding error of the first (Knuth's two-sum)."""
    old, lost = running
    value = value.astype(old.dtype) + lost
    new = old + value
    part = new - old
    return jnp.stack([new, (old - (new - part)) + (value - part)])


def stream_bco(*, beta: float = 0.1, pairs: bool = False) -> BatchLoss:
    r"""BCO with its shift :math:`\delta`: the mean of :math:`\beta\Delta` over all answers of the stream, good and bad.

    The mean counts every unmasked answer seen so far once, those of the present global batch included, and is
    constant: no gradient flows through it.

    Args:
      beta: scale of the implicit reward, in (0, inf).
      pairs: whether an example is a pair, whose loss is
        :math:`-\log\sigma(\beta\Delta_w - \delta) - \log\sigma(\delta - \beta\Delta_l)`: both of its answers count in
        the mean, and their losses are added. Otherwise an example is a single answer, see `bco`.

    Returns:
      A `BatchLoss` with state `RunningMean`, of the signals `policy`, `reference` and `desirable`, or of the four of
      pairs: `policy_chosen`, `policy_rejected`, `reference_chosen` and `reference_rejected`.

    Raises:
      ValueError: if `beta` is out of range; at the call, if a signal is missing or does not fit.

    References:
      Jung et al., *Binary Classifier Optimization for Large Language Model Alignment*, 2024, arXiv 2404.04656.
    """
    function = "losses.preference.stream_bco"
    _inputs.positive(function, beta=beta)
    names = PAIRED if pairs else JUDGED

    def answers(signals: dict[str, Any]) -> tuple[list[tuple[Array, Array, Array]], Array]:
        """(policy, reference, desirable) of single answers, or of the two sides of pairs."""
        rows, kept = _rows(function, signals, names)
        if not pairs:
            return [(rows["policy"], rows["reference"], rows["desirable"])], kept
        good, bad = jnp.ones_like(kept), jnp.zeros_like(kept)
        return [
            (rows["policy_chosen"], rows["reference_chosen"], good),
            (rows["policy_rejected"], rows["reference_rejected"], bad),
        ], kept

    def init(key: PRNGKeyArray | None = None) -> RunningMean:
        del key
        return RunningMean(jnp.zeros(2), jnp.zeros(2))

    def statistics(state: RunningMean, **signals: Any) -> tuple[Float[Array, ""], RunningMean]:
        sides, kept = answers(signals)
        # What is masked is 0 on either side of the difference.
        rewards = sum(jnp.sum(beta * (policy - reference)) for policy, reference, _ in sides)
        seen = _add(state.seen, len(sides) * jnp.sum(kept))
        state = RunningMean(seen, _add(state.total, jnp.asarray(rewards)))
        return state.total[0] / jnp.maximum(state.seen[0], 1), state

    def losses(statistics: Float[Array, ""], **signals: Any) -> Float[Array, " batch"]:
        sides, kept = answers(signals)
        values = sum(unpaired.bco(*side, statistics, beta=beta) for side in sides)
        return jnp.where(kept, values, 0)

    return BatchLoss(init, statistics, losses, names)


class BetaDPOState(NamedTuple):
    """Moving averages of mean and standard deviation of the margins, and the key of the next selection."""

    mean: Float[Array, ""]
    std: Float[Array, ""]
    key: PRNGKeyArray


class BetaDPOStatistics(NamedTuple):
    """The `beta` of a batch, and what each of its examples counts: n/k for the k of n selected, 0 for the others."""

    beta: Float[Array, ""]
    weights: Float[Array, " batch"]


def beta_dpo(
    *,
    beta: float = 0.1,
    sensitivity: float = 0.6,
    keep_rate: float = 0.8,
    decay: float = 0.9,
    min_beta: float = 1e-3,
) -> BatchLoss:
    r"""β-DPO: `dpo` with a `beta` a batch and a selection of its pairs, both from a moving average of the margins.

    With the margins :math:`\Delta` of the global batch (the log-ratio of the chosen answer less that of the rejected),
    mean and standard deviation (n - 1) of the batch enter the moving averages :math:`M` and :math:`S`, which start at 0
    and are updated first. Then

    - :math:`\lfloor \rho n \rfloor` pairs, at least one, are drawn without replacement with weights
      :math:`\exp(-(\Delta - M)^2 / (2 S^2))`: pairs with unusual margins are likely to be left out;
    - :math:`\beta_b = \max(\beta_{min}, \beta (1 + a (\bar\Delta - M)))` with the mean margin of the selected: the
      wider the margins, the closer the policy is held to the reference.

    The loss of a selected pair is :math:`-\log\sigma(\beta_b \Delta)\, n / k`, that of the others 0, so that the mean
    over the :math:`n` unmasked examples of the batch is the mean over the :math:`k` selected. Selection and
    :math:`\beta_b` are constant: no gradient flows through them.

    Args:
      beta: :math:`\beta`, of a batch with average margins, in (0, inf).
      sensitivity: :math:`a`, in [0, inf).
      keep_rate: :math:`\rho`, share of the pairs that are selected, in (0, 1].
      decay: of the moving averages, in [0, 1).
      min_beta: :math:`\beta_{min}`, in (0, inf).

    Returns:
      A `BatchLoss` with state `BetaDPOState`, whose `init` needs a key. Signals: `policy_chosen`, `policy_rejected`,
      `reference_chosen`, `reference_rejected`; with the signal `selected`, boolean or 0/1 `[B]`, those pairs are
      selected instead of drawn ones. Where the margins do not vary every selection is as likely. A batch of one has
      standard deviation 0.

    Raises:
      ValueError: if a hyperparameter is out of range; in `init`, without a key; at the call, if a signal is missing or
        does not fit.

    References:
      Wu et al., *β-DPO: Direct Preference Optimization with Dynamic β*, 2024, arXiv 2407.08639.
    """
    function = "losses.preference.beta_dpo"
    _inputs.positive(function, beta=beta, min_beta=min_beta)
    _inputs.non_negative(function, sensitivity=sensitivity)
    _checks.number(function, "keep_rate", keep_rate, low=0, high=1, open_low=True)
    _checks.number(function, "decay", decay, low=0, high=1, open_high=True)

    def margins(rows: dict[str, Array]) -> Array:
        chosen, rejected = _log_ratios(rows)
        return chosen - rejected

    def init(key: PRNGKeyArray | None = None) -> BetaDPOState:
        if key is None:
            _checks.fail(function, "key", "missing", "a key for `init`, such as jax.random.key(0): pairs are drawn")
        return BetaDPOState(jnp.zeros(()), jnp.zeros(()), key)

    def statistics(state: BetaDPOState, **signals: Any) -> tuple[BetaDPOStatistics, BetaDPOState]:
        given = signals.get("selected")
        rows, kept = _rows(function, signals, PAIRED if given is None else (*PAIRED, "selected"))
        margin = margins(rows)
        count = jnp.sum(kept, dtype=margin.dtype)
        mean = jnp.sum(margin) / jnp.maximum(count, 1)
        variance = jnp.sum(jnp.where(kept, (margin - mean) ** 2, 0)) / jnp.maximum(count - 1, 1)
        mean = decay * state.mean + (1 - decay) * mean
        std = decay * state.std + (1 - decay) * jnp.sqrt(variance)
        draw, following = jax.random.split(state.key)
        if given is None:
            size = _selected_count(count, keep_rate)
            selected = _drawn(draw, margin, mean, std, kept, size)
        else:
            selected = rows["selected"]
            size = jnp.sum(selected, dtype=margin.dtype)
        size = jnp.maximum(size, 1)
        ahead = jnp.sum(jnp.where(selected, margin, 0)) / size - mean
        batch_beta = jnp.maximum(beta * (1 + sensitivity * ahead), min_beta)
        new = BetaDPOState(mean.astype(state.mean.dtype), std.astype(state.std.dtype), following)
        some = count > 0
        state = jax.tree.map(lambda new, old: jnp.where(some, new, old), new, state)
        return BetaDPOStatistics(batch_beta.astype(margin.dtype), jnp.where(selected, count / size, 0)), state

    def losses(statistics: BetaDPOStatistics, **signals: Any) -> Float[Array, " batch"]:
        rows, _ = _rows(function, signals, PAIRED)
        return statistics.weights * links.logistic(statistics.beta * margins(rows))

    return BatchLoss(init, statistics, losses, PAIRED)


def _log_ratios(rows: dict[str, Array]) -> tuple[Array, Array]:
    reference_chosen, reference_rejected = jax.lax.stop_gradient((rows["reference_chosen"], rows["reference_rejected"]))
    return rows["policy_chosen"] - reference_chosen, rows["policy_rejected"] - reference_rejected


def _selected_count(count: Array, keep_rate: float) -> Array:
    # A rate such as 0.7 may lie just below its decimal value; that must not cost the pair that 0.7 * 10 stands for.
    size = jnp.floor(jnp.asarray(keep_rate, count.dtype) * count * (1 + 4 * jnp.finfo(count.dtype).eps))
    return jnp.clip(size, jnp.minimum(count, 1), count)


def _drawn(
    key: PRNGKeyArray, margin: Array, mean: Array, std: Array, kept: Array, size: Array
) -> Bool[Array, " batch"]:
    """`size` of the kept, without replacement, with weights that fall with the distance from the mean (Gumbel top-k).

    Weights are relative to the largest one, so that a spread of 0, which goes with equal margins, leaves a choice.
    """
    distance = jnp.abs(margin - mean)
    nearest = jnp.min(distance, initial=jnp.inf, where=kept)
    scale = jnp.maximum(std, 1e-12)
    log_weights = -0.5 * ((distance - nearest) / scale) * ((distance + nearest) / scale)
    # The k-th unmasked pair gets the k-th number, whatever is masked around it and in whatever precision margins are.
    noise = jax.random.gumbel(key, margin.shape, jnp.float32)[jnp.maximum(jnp.cumsum(kept) - 1, 0)]
    order = jnp.lexsort((-(log_weights + noise), ~kept))
    return kept & (jnp.zeros_like(order).at[order].set(jnp.arange(order.size)) < size)


def batch_aot(*, beta: float = 0.1, label_smoothing: float = 0.0) -> BatchLoss:
    r"""AOT of pairs over the global batch: `dpo` against the reference margin of the same rank, as a `BatchLoss`.

    The policy's margins between chosen and rejected answers and the reference's are sorted over the batch, and the
    smallest is compared with the smallest, and so on. The statistic is the reference margin that an example's rank
    gives it; the losses are those of `aot`, in the order of the examples.

    Args:
      beta: as in `dpo`, in (0, inf).
      label_smoothing: the share of labels taken to be flipped, in [0, 0.5).

    Returns:
      A `BatchLoss` without state, of the signals `policy_chosen`, `policy_rejected`, `reference_chosen` and
      `reference_rejected`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Melnyk et al., *Distributional Preference Alignment of LLMs via Optimal Transport*, 2024, arXiv 2406.05882.
    """
    function = "losses.preference.batch_aot"
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)

    def statistics(state: tuple[()], **signals: Any) -> tuple[Float[Array, " batch"], tuple[()]]:
        rows, kept = _rows(function, signals, PAIRED)
        policy = rows["policy_chosen"] - rows["policy_rejected"]
        return transport.partner_values(policy, rows["reference_chosen"] - rows["reference_rejected"], kept), state

    def losses(statistics: Float[Array, " batch"], **signals: Any) -> Float[Array, " batch"]:
        rows, kept = _rows(function, signals, PAIRED)
        margin = beta * (rows["policy_chosen"] - rows["policy_rejected"] - statistics)
        return jnp.where(kept, links.logistic(margin, label_smoothing=label_smoothing), 0)

    return BatchLoss(_stateless, statistics, losses, PAIRED)


class MatchedMargins(NamedTuple):
    """Of each example the rejected log-ratio with the rank of its chosen one, and the other way round."""

    rejected: Float[Array, " batch"]
    chosen: Float[Array, " batch"]


def batch_aot_unpaired(*, beta: float = 0.1, label_smoothing: float = 0.0) -> BatchLoss:
    r"""AOT of unpaired answers over the global batch: chosen against rejected log-ratios of the same rank.

    The log-ratios of the chosen answers and those of the rejected are sorted over the batch each on their own, so that
    it does not matter which rejected answer came with which chosen one. Both sides of a comparison have a gradient,
    and they belong to different examples. With the rejected log-ratio :math:`l` of the rank of :math:`\Delta_w` and the
    chosen one :math:`w` of the rank of :math:`\Delta_l`, both constant, and :math:`f` the loss of `dpo`, an example's
    loss is

    .. math:: f(\Delta_w - l) + f(w - \Delta_l) - \mathrm{sg}(f(w - \Delta_l))

    whose value is that of the comparison of its chosen answer. The sum over the batch has value and gradient of the sum
    of `aot_unpaired`; a weight on an example counts for its chosen and for its rejected answer.

    Args:
      beta: as in `dpo`, in (0, inf).
      label_smoothing: the share of labels taken to be flipped, in [0, 0.5).

    Returns:
      A `BatchLoss` without state, of the signals `policy_chosen`, `policy_rejected`, `reference_chosen` and
      `reference_rejected`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Melnyk et al., *Distributional Preference Alignment of LLMs via Optimal Transport*, 2024, arXiv 2406.05882.
    """
    function = "losses.preference.batch_aot_unpaired"
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)

    def statistics(state: tuple[()], **signals: Any) -> tuple[MatchedMargins, tuple[()]]:
        rows, kept = _rows(function, signals, PAIRED)
        chosen, rejected = _log_ratios(rows)
        return MatchedMargins(
            transport.partner_values(chosen, rejected, kept), transport.partner_values(rejected, chosen, kept)
        ), state

    def losses(statistics: MatchedMargins, **signals: Any) -> Float[Array, " batch"]:
        rows, kept = _rows(function, signals, PAIRED)
        chosen, rejected = _log_ratios(rows)
        own = links.logistic(beta * (chosen - statistics.rejected), label_smoothing=label_smoothing)
        others = links.logistic(beta * (statistics.chosen - rejected), label_smoothing=label_smoothing)
        return jnp.where(kept, own + others - jax.lax.stop_gradient(others), 0)

    return BatchLoss(_stateless, statistics, losses, PAIRED)
