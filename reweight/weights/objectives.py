"""Balance between the objectives of one training run, by how fast their losses fall and how sure their teachers are."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.schedules import Schedule
from reweight.weights import base
from reweight.weights.groups import group_dro_weights, group_means

__all__ = [
    "EntropyBalanceState",
    "LossBalanceState",
    "TemperatureBalance",
    "entropy_balance",
    "normalized_loss_balance",
]


def _rate(rate: float | Schedule, step: Int[Array, ""]) -> Any:
    return jnp.maximum(rate(step), 0) if callable(rate) else rate


class LossBalanceState(NamedTuple):
    """Weights of the objectives, which sum to one, and what `normalized_loss_balance` compares their losses with."""

    step: Int[Array, ""]
    weights: Float[Array, " objectives"]
    first: Float[Array, " objectives"]
    seen: Bool[Array, " objectives"]


def normalized_loss_balance(
    num_objectives: int, *, rate: float | Schedule = 0.025, power: float = 1.0, signal: str = "objectives"
) -> base.Weighting:
    r"""Weight for the objectives whose losses have fallen least since the start: they learn more slowly.

    .. math::
        r_k = \bar\ell_k / \bar\ell_k^{\text{first}}, \qquad
        w_k \leftarrow \Big[w_k - \eta\, \Big(w_k - \frac{r_k^\beta}{\sum_j r_j^\beta}\Big)\Big]_+ \Big/ Z, \qquad
        w_i = n\, w_{k_i} / n_{k_i}

    The objective of a loss is an id, as its group is in `group_dro`, and the weighted mean of the losses is
    :math:`\sum_k w_k \bar\ell_k`. Means are over the global batch, and the :math:`w_k` just updated are used. They
    start equal. An objective that the batch does not hold keeps its :math:`w_k`; its first loss is that of the first
    batch that holds it.

    Args:
      num_objectives: how many there are.
      rate: :math:`\eta`, in [0, inf), or a schedule from the number of batches seen so far to a rate. At 0 the weights
        stay equal, at 1 they are the shares of the relative losses.
      power: :math:`\beta`, in [0, inf); at 0 the weights stay equal.
      signal: the name of the signal that holds the ids.

    Returns:
      A `Weighting` with state `LossBalanceState`, for losses that are non-negative (a negative mean counts as 0). A
      first loss below 1e-12 counts as that. Where all losses are 0 the weights stay as they are. An id outside
      [0, num_objectives) has weight 0.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if the ids are missing or do not fit the losses.

    References:
      Zhao et al., *Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation*, 2024,
      arXiv 2306.16170.
    """
    function = "weights.normalized_loss_balance"
    _checks.number(function, "num_objectives", num_objectives, low=1, open_high=True, integer=True)
    if not callable(rate):
        _checks.number(function, "rate", rate, low=0, open_high=True)
    _checks.number(function, "power", power, low=0, open_high=True)

    def init(key: PRNGKeyArray | None = None) -> LossBalanceState:
        del key
        equal = jnp.full((num_objectives,), 1 / num_objectives)
        return LossBalanceState(
            jnp.zeros((), jnp.int32), equal, jnp.ones_like(equal), jnp.zeros((num_objectives,), bool)
        )

    def update(
        state: LossBalanceState, losses: Float[Array, "..."], **signals: Any
    ) -> tuple[Float[Array, "..."], LossBalanceState]:
        _checks.require(function, signals, (signal,))
        mask = signals.get("mask")
        kept = base.keep(losses, mask, function)
        ids = base.integer_ids(function, signal, signals[signal], losses)
        means, counts = group_means(jax.lax.stop_gradient(losses), ids, num_groups=num_objectives, mask=mask)
        here = counts > 0
        means = means.astype(state.first.dtype)
        first = jnp.where(here & ~state.seen, jnp.maximum(means, 1e-12), state.first)
        relative = jnp.where(here, jnp.maximum(means, 0) / first, 0)
        top = jnp.max(relative)
        share = jnp.where(here, (relative / jnp.where(top > 0, top, 1)) ** power, 0)
        # The objectives that are here share the weight that they have together.
        total, own = jnp.sum(share), jnp.sum(jnp.where(here, state.weights, 0))
        target = jnp.where(here & (top > 0), own * share / jnp.where(total > 0, total, 1), state.weights)
        moved = jnp.maximum(state.weights - _rate(rate, state.step) * (state.weights - target), 0)
        moved = (moved / jnp.sum(moved)).astype(state.weights.dtype)
        some = jnp.any(kept)
        new = LossBalanceState(
            state.step + some.astype(jnp.int32), jnp.where(some, moved, state.weights), first, state.seen | here
        )
        return group_dro_weights(ids, new.weights, mask=mask), new

    return base.Weighting(init, update, "batch", (signal,))


class EntropyBalanceState(NamedTuple):
    """How many batches have been seen, and the temperatures for the next one."""

    step: Int[Array, ""]
    temperatures: Float[Array, " teachers"]


class _UpdateFn(Protocol):
    def __call__(
        self,
        state: EntropyBalanceState,
        teacher_logits: Sequence[Float[Array, "batch classes"]],
        *,
        mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, " teachers"], EntropyBalanceState]: ...


class TemperatureBalance(NamedTuple):
    """Temperatures of several teachers, in pure functions.

    Attributes:
      init: `init() -> state`.
      update: `update(state, teacher_logits, *, mask=None) -> (temperatures, state)`: the temperatures `[n]` of this
        batch, which are those that the state came with, and the next state. The logits `[B, C]` of each teacher are in
        the order of the temperatures; classes may differ. A batch that is masked altogether leaves the state as it was.
    """

    init: Callable[[], EntropyBalanceState]
    update: _UpdateFn


def entropy_balance(
    num_teachers: int = 2,
    *,
    rate: float | Schedule = 1e-3,
    min_temperature: float = 1.0,
    max_temperature: float = 10.0,
    eps: float = 1e-5,
) -> TemperatureBalance:
    r"""Temperatures that make teachers equally sure: the more certain one gets the higher temperature.

    .. math::
        H_k = \frac{1}{BC} \sum_{i,c} q_{kic} \log(q_{kic} + \epsilon), \qquad
        T_k \leftarrow \mathrm{clip}\big(T_k - \eta\, \mathrm{sign}(H_k / H_{-k} - 1),\ T_{\min},\ T_{\max}\big)

    with the teacher's probabilities :math:`q_k = \mathrm{softmax}(z_k / T_k)` and the mean :math:`H_{-k}` of the
    other teachers. :math:`H_k` is minus the entropy over C, up to :math:`\epsilon`, over the global batch. Temperatures
    start at the least.

    Args:
      num_teachers: how many there are, at least 2.
      rate: :math:`\eta`, in [0, inf), or a schedule from the number of batches seen so far to a rate; 0 leaves the
        temperatures where they are.
      min_temperature: :math:`T_{\min}`, in (0, inf).
      max_temperature: :math:`T_{\max}`, in [min_temperature, inf).
      eps: :math:`\epsilon`, in [0, inf), inside the logarithm as in the released code. It makes :math:`H_k` of a
        teacher within about :math:`\epsilon` of certainty positive, and the ratio negative or inverted; with 0 this is
        the entropy.

    Returns:
      A `TemperatureBalance`. Teachers that are equally sure stay where they are. No gradient flows through it.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if there are not as many logits as teachers, or they
        have not one row an example.

    References:
      Zhao et al., *Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation*, 2024,
      arXiv 2306.16170.
    """
    function = "weights.entropy_balance"
    _checks.number(function, "num_teachers", num_teachers, low=2, open_high=True, integer=True)
    if not callable(rate):
        _checks.number(function, "rate", rate, low=0, open_high=True)
    _checks.number(function, "min_temperature", min_temperature, low=0, open_low=True, open_high=True)
    least = min_temperature if isinstance(min_temperature, int | float) else 0
    _checks.number(function, "max_temperature", max_temperature, low=least, open_high=True)
    _checks.number(function, "eps", eps, low=0, open_high=True)

    def init() -> EntropyBalanceState:
        return EntropyBalanceState(jnp.zeros((), jnp.int32), jnp.full((num_teachers,), min_temperature, float))

    def update(
        state: EntropyBalanceState,
        teacher_logits: Sequence[Float[Array, "batch classes"]],
        *,
        mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, " teachers"], EntropyBalanceState]:
        if len(teacher_logits) != num_teachers:
            _checks.fail(function, "teacher_logits", f"of {len(teacher_logits)} teachers", f"{num_teachers} arrays")
        size = jnp.shape(teacher_logits[0])[0] if jnp.ndim(teacher_logits[0]) else None
        for logits in teacher_logits:
            _checks.array(function, "teacher_logits", logits, shape=(size, None), kind="float")
        _checks.mask(function, "mask", mask, jnp.zeros((size,)), like_name="the first axis of teacher_logits")
        kept = _checks.kept(mask, jnp.shape(teacher_logits[0])[:1])

        def negative_entropy(logits: Array, temperature: Array) -> Float[Array, ""]:
            wide = jnp.where(kept[:, None], logits, 0).astype(_checks.accumulation_dtype(logits))
            q = jax.nn.softmax(wide / temperature)
            safe = jnp.where(q + eps > 0, q + eps, 1)
            rows = jnp.mean(q * jnp.log(safe), axis=-1)
            return jnp.sum(jnp.where(kept, rows, 0)) / jnp.maximum(jnp.sum(kept), 1)

        found = jnp.stack([negative_entropy(x, t) for x, t in zip(teacher_logits, state.temperatures, strict=True)])
        others = jnp.stack([jnp.mean(jnp.delete(found, k)) for k in range(num_teachers)])
        # sign(H / H' - 1) without the division.
        direction = jnp.sign(found - others) * jnp.where(others > 0, 1, -1)
        moved = jnp.clip(state.temperatures - _rate(rate, state.step) * direction, min_temperature, max_temperature)
        some = jnp.any(kept)
        new = EntropyBalanceState(
            state.step + some.astype(jnp.int32),
            jnp.where(some, moved, state.temperatures).astype(state.temperatures.dtype),
        )
        return jax.lax.stop_gradient((state.temperatures, new))

    return TemperatureBalance(init, update)
