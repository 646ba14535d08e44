import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import drawn

from reweight.losses import preference

RATES = {"chosen_win_rate": np.linspace(0, 1, 8, dtype=np.float32), "rejected_win_rate": np.full(8, 0.3, np.float32)}
NEEDED = {"r_dpo": {"alpha": 0.1}}


@pytest.mark.parametrize("name", preference.PAIR_LOSSES)
def test_a_loss_by_its_name_is_the_function(name):
    pairs = drawn()._replace(**RATES)
    function = preference.PAIR_LOSSES[name]
    assert function is getattr(preference, name)
    given = {
        field: value for field, value in pairs._asdict().items() if field in inspect.signature(function).parameters
    }
    losses = jax.jit(lambda pairs: preference.pair_loss(name, pairs, **NEEDED.get(name, {})))(pairs)
    assert losses.shape == (8,)
    np.testing.assert_allclose(losses, function(**given, **NEEDED.get(name, {})), rtol=1e-5)


def test_every_array_of_a_loss_is_a_field():
    fields = set(preference.Pairs._fields)
    for name, function in preference.PAIR_LOSSES.items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                assert parameter.name in fields, (name, parameter.name)


def test_hyperparameters_and_the_mask_reach_the_loss():
    pairs = drawn()
    np.testing.assert_allclose(
        preference.pair_loss("dpo", pairs, beta=0.7), preference.dpo(*pairs[:4], beta=0.7), rtol=1e-6
    )
    masked = preference.pair_loss("aot", pairs._replace(mask=np.arange(8) < 5))
    assert not np.any(masked[5:])


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda p: preference.pair_loss("ppo", p), "name"),
        (lambda p: preference.pair_loss("dpo", p._replace(reference_chosen=None)), "pairs.reference_chosen"),
        (lambda p: preference.pair_loss("simpo", preference.Pairs(*p[:2])), "pairs.chosen_lengths"),
        (lambda p: preference.pair_loss("ipo", preference.Pairs(*p[:4])), "chosen_lengths"),
        (lambda p: preference.pair_loss("sppo", p), "pairs.chosen_win_rate"),
        (lambda p: preference.pair_loss("dpo", p, gamma=1.0), "gamma"),
        (lambda p: preference.pair_loss("dpo", p, beta=-1.0), "beta"),
    ],
)
def test_what_is_missing_or_unknown_is_named(run, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        run(drawn())


def test_a_required_hyperparameter_is_asked_for_by_name():
    with pytest.raises(ValueError, match="argument `alpha`"):
        preference.pair_loss("r_dpo", drawn())


def test_a_field_of_the_pairs_is_no_hyperparameter():
    pairs = preference.Pairs(jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"argument `nll` is given as a hyperparameter; allowed: .*pairs\.nll"):
        preference.pair_loss("cpo", pairs, nll=0.0)
    np.testing.assert_allclose(preference.pair_loss("cpo", pairs._replace(nll=jnp.ones(2))), np.log(2) + 1, rtol=1e-6)
