"""Selection by small losses, and the memory of single examples."""

import jax
import jax.numpy as jnp
import numpy as np

from conformance.case import Case, WeightingCase
from conformance.cases.weights_base import some_losses
from conformance.cases.weights_dro import each, kl, spread
from reweight import weights

EXAMPLES = 40


@spread
def small(losses, keep_rate):
    size = max(int(np.floor(keep_rate * losses.size + 1e-9)), 1)
    out = np.zeros(losses.shape)
    out[np.argsort(losses, kind="stable")[:size]] = losses.size / size
    return out


def keep_rate_one_is_uniform(probe):
    arrays = probe.arrays()
    np.testing.assert_allclose(probe.value(arrays, keep_rate=1.0), arrays["mask"])


def keep_rate_zero_keeps_the_smallest(probe):
    arrays = probe.arrays()
    value = probe.value(arrays, keep_rate=0.0)
    assert np.flatnonzero(value).tolist() == [np.argmin(np.where(arrays["mask"], arrays["losses"], np.inf))]


def co_taught(losses, keep_rate, mask):
    """What the first network learns from: the choice of the second."""
    return small(losses=losses[:, 1], mask=mask, keep_rate=keep_rate)


def losses_of_two(rng, n):
    return {"losses": rng.exponential(size=(n, 2))}


def _of_examples(mask):
    return None if mask is None else jnp.asarray(mask)[:, None]


def _co_teaching_weights(losses, mask=None, **hyper):
    return weights.co_teaching_weights(losses, mask=_of_examples(mask), **hyper)[:, 0]


def _co_teaching(**hyper):
    scheme = weights.co_teaching(**hyper)

    def update(state, losses, mask=None, **_):
        found, state = scheme.update(state, losses, mask=_of_examples(mask))
        return found[:, 0], state

    return scheme._replace(update=update)


def falling(step):
    return 1 - 0.3 * step


def _drawn(rng, n, always, others):
    """n different ids, those at the ends of the table among them."""
    return rng.permutation(np.concatenate([always, rng.permutation(others)[: n - len(always)]]))


def indexed_losses(rng, n):
    return {**some_losses(rng, n), "indices": _drawn(rng, n, [0, EXAMPLES - 1], np.arange(1, EXAMPLES - 1))}


def _smoothed(inner):
    def reference(steps, num_examples, decay=0.9):
        means, found = {}, []
        for step in steps:
            smooth = step["losses"].copy()
            for row in np.flatnonzero(step["mask"]):
                index = int(step["indices"][row])
                if index in means:
                    smooth[row] = decay * means[index] + (1 - decay) * step["losses"][row]
                means[index] = smooth[row]
            found.append(inner(smooth, step["mask"]))
        return found

    return reference


def _sigmoid(losses, *, mask=None):
    return weights.uniform().update((), losses, mask=mask)[0] * jax.nn.sigmoid(losses)


def _rows(rng, n):
    ends = [-1, 0, EXAMPLES - 1, EXAMPLES]
    return {"table": rng.normal(size=(EXAMPLES, 3)), "indices": _drawn(rng, n, ends, np.arange(1, EXAMPLES - 1))}


def _written(rng, n):
    arrays = _rows(rng, n)
    ends = np.isin(arrays["indices"], [0, EXAMPLES - 1])
    return {**arrays, "values": rng.normal(size=(n, 3)), "mask": ends | (rng.random(n) > 0.3)}


def _scattered(table, indices, values, mask):
    out = table.copy()
    for row in np.flatnonzero(mask & (indices >= 0) & (indices < len(table))):
        out[indices[row]] = values[row]
    return out


def _known_rows(table, indices):
    known = (indices >= 0) & (indices < len(table))
    return np.where(known[:, None], table[np.where(known, indices, 0)], 0)


CASES = [
    Case(
        function=weights.small_loss_weights,
        inputs=some_losses,
        hyper={"keep_rate": 0.6},
        mask="mask",
        stopped=("losses",),
        couples=True,
        weights=True,
        reference=small,
        invariants=(keep_rate_one_is_uniform, keep_rate_zero_keeps_the_smallest),
        bad={"keep_rate": (-0.1, 1.1)},
    ),
    WeightingCase(
        function=weights.small_loss,
        inputs=some_losses,
        hyper={"keep_rate": 0.6},
        reference=each(small),
        invariants=(keep_rate_one_is_uniform, keep_rate_zero_keeps_the_smallest),
        bad={"keep_rate": (-0.1, 1.1)},
    ),
    WeightingCase(
        function=weights.small_loss,
        variant="schedule",
        inputs=some_losses,
        hyper={"keep_rate": falling},
        reference=lambda steps, keep_rate: [small(**s, keep_rate=keep_rate(t)) for t, s in enumerate(steps)],
    ),
    Case(
        function=weights.co_teaching_weights,
        inputs=losses_of_two,
        call=_co_teaching_weights,
        hyper={"keep_rate": 0.6},
        mask="mask",
        stopped=("losses",),
        couples=True,
        weights=True,
        reference=co_taught,
        bad={"keep_rate": (-0.1, 1.1)},
    ),
    WeightingCase(
        function=weights.co_teaching,
        inputs=losses_of_two,
        call=_co_teaching,
        hyper={"keep_rate": falling},
        reference=lambda steps, keep_rate: [co_taught(**s, keep_rate=keep_rate(t)) for t, s in enumerate(steps)],
        bad={"keep_rate": (-0.1, 1.1)},
    ),
    Case(
        function=weights.keep_schedule,
        inputs=lambda rng, n: {"step": np.arange(n)},
        call=lambda step, **hyper: weights.keep_schedule(**hyper)(step),
        hyper={"forget_rate": 0.4, "steps_per_epoch": 2, "gradual_epochs": 4},
        defaults={"forget_rate": 0.2, "gradual_epochs": 5},
        reference=lambda step, forget_rate, steps_per_epoch, gradual_epochs: (
            1 - np.interp(step // steps_per_epoch, [0, gradual_epochs - 1], [0, forget_rate])
        ),
        bad={"forget_rate": (-0.1, 1.1), "steps_per_epoch": (0, 2.5), "gradual_epochs": (0, 2.5)},
    ),
    Case(
        function=weights.table_init,
        defaults={"fill": 0.0},
        inputs=lambda rng, n: {},
        returns="batch",
        hyper={"num_examples": 5, "shape": (2,), "fill": 0.5},
        static={"fill": "a constant of the table"},
        reference=lambda num_examples, shape, fill: np.full((num_examples, *shape), fill),
        bad={"num_examples": (0, 2.5)},
        free={"shape": "any shape", "fill": "any number", "dtype": "any dtype"},
    ),
    Case(
        function=weights.table_gather,
        inputs=_rows,
        fixed=("table",),
        differentiable=("table",),
        bf16=None,
        reference=_known_rows,
        bad={"table": (np.zeros((0, 3)),)},
    ),
    Case(
        function=weights.table_scatter,
        inputs=_written,
        returns="batch",
        fixed=("table",),
        mask="mask",
        differentiable=("table", "values"),
        bf16=None,
        empty=lambda table, **_: table,
        reference=_scattered,
        bad={"table": (np.zeros((0, 3)),), "values": (np.zeros((16, 4)),)},
    ),
    WeightingCase(
        function=weights.smoothed,
        defaults={"decay": 0.9},
        inputs=indexed_losses,
        hyper={"num_examples": EXAMPLES, "decay": 0.6},
        call=lambda **hyper: weights.smoothed(weights.kl_dro(), **hyper),
        reference=_smoothed(kl),
        bad={"num_examples": (0, 2.5), "decay": (-0.1, 1.0)},
        free={"inner": "any weighting"},
    ),
    WeightingCase(
        function=weights.smoothed,
        variant="by example",
        inputs=indexed_losses,
        hyper={"num_examples": EXAMPLES},
        call=lambda **hyper: weights.smoothed(weights.stateless(_sigmoid, scope="example"), **hyper),
        mean=None,
        reference=_smoothed(lambda losses, mask: mask / (1 + np.exp(-losses))),
    ),
]
