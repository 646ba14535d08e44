"""Sampling: the distribution, the cache, stop tokens, and what it does not depend on."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import decoding, models, parallel

KEY = jax.random.key(7)
VOCABULARY = 12
CONFIG = models.DecoderConfig(
    vocab_size=VOCABULARY,
    d_model=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    d_ff=24,
    max_length=24,
    qk_norm=True,
)
MODEL = models.language_model(CONFIG, key=jax.random.key(0))
PROMPTS = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (4, 5)))
RAGGED = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
STOPS = (1, 5)


class Table(typing.NamedTuple):
    """A model whose next token depends on nothing: its logits are its parameters."""

    def apply(self, params, tokens, *, mask=None, cache=None):
        return jnp.ones((*tokens.shape, 1)), cache

    def logits(self, params, hidden):
        return hidden * params

    def init_cache(self, batch_size, length):
        return jnp.zeros((batch_size, length))


@functools.cache
def compiled(**static):
    return jax.jit(functools.partial(decoding.sample, model=MODEL, **static))


@jax.jit
def from_table(logits, options):
    return decoding.sample(KEY, logits, Table(), jnp.zeros((8, 1), int), max_new_tokens=1, num_samples=500, **options)


def traced(vocabulary, *, temperature=1.0, top_k=None, top_p=None, stop_tokens=(99, 99), pad_token=0):
    """Options that keep everything where none are given, so that one executable serves all tests."""
    return {
        "temperature": temperature,
        "top_k": vocabulary if top_k is None else top_k,
        "top_p": 1.0 if top_p is None else top_p,
        "stop_tokens": jnp.array(stop_tokens),
        "pad_token": pad_token,
    }


def sample(
    prompts=PROMPTS,
    prompt_mask=None,
    *,
    key=KEY,
    params=MODEL.params,
    prompt_ids=None,
    max_new_tokens=6,
    num_samples=2,
    use_cache=True,
    **options,
):
    run = compiled(max_new_tokens=max_new_tokens, num_samples=num_samples, use_cache=use_cache)
    return run(
        key,
        params,
        prompts=prompts,
        prompt_mask=jnp.ones_like(prompts) if prompt_mask is None else prompt_mask,
        prompt_ids=jnp.arange(len(prompts)) if prompt_ids is None else prompt_ids,
        **traced(VOCABULARY, **options),
    )


def draw(logits, **options):
    """4000 answers of one token from a table of six logits."""
    samples = from_table(jnp.asarray(logits, jnp.float32), traced(6, **options))
    return jax.tree.map(np.ravel, samples)


def assert_same(came, wanted, tolerance=1e-5):
    for name in ("tokens", "mask", "stopped"):
        np.testing.assert_array_equal(getattr(came, name), getattr(wanted, name), err_msg=name)
    for name in ("log_probs", "sampling_log_probs"):
        np.testing.assert_allclose(getattr(came, name), getattr(wanted, name), atol=tolerance, err_msg=name)


# -- the cache

OPTIONS = {
    "plain": {},
    "truncated": {"temperature": 0.7, "top_k": 6, "top_p": 0.9},
    "stops": {"stop_tokens": STOPS},
    "greedy": {"temperature": 0.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", [None, RAGGED], ids=["whole", "ragged"])
def test_the_cache_changes_nothing(options, mask):
    cached = sample(prompt_mask=mask, **options)
    assert_same(cached, sample(prompt_mask=mask, use_cache=False, **options))


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": False, "num_kv_heads": 4},
        {"num_kv_heads": 1, "tie_embeddings": False, "logit_cap": 3.0, "remat": True},
    ],
    ids=["all heads", "one head of keys"],
)
def test_the_cache_changes_nothing_in_other_shapes(changes):
    model = models.language_model(dataclasses.replace(CONFIG, **changes), key=jax.random.key(1))

    @functools.partial(jax.jit, static_argnames="use_cache")
    def run(use_cache):
        return decoding.sample(
            KEY, model.params, model, PROMPTS, RAGGED, max_new_tokens=6, stop_tokens=STOPS, use_cache=use_cache
        )

    assert_same(run(True), run(False))


def test_the_cache_changes_nothing_against_a_loop_in_python():
    samples = sample(prompt_mask=RAGGED, top_k=5, stop_tokens=STOPS)
    for row in range(len(PROMPTS)):
        prompt = PROMPTS[row][RAGGED[row] == 1]
        for s in range(2):
            text, key = prompt, jax.random.fold_in(jax.random.fold_in(KEY, row), s)
            for step in range(6):
                # At the front of a row, with all of the prompt's padding gone.
                padded = jnp.pad(text, (0, 11 - len(text)))[None]
                log_probs = forward(MODEL.params, padded, jnp.arange(11)[None] < len(text))[0, len(text) - 1]
                kept = jnp.where(decoding.top_k_mask(log_probs, k=5), log_probs, -jnp.inf)
                token = jax.random.categorical(jax.random.fold_in(key, step), kept)
                assert samples.tokens[row, s, step] == token
                np.testing.assert_allclose(samples.log_probs[row, s, step], log_probs[token], atol=1e-5)
                text = jnp.append(text, token)
                if token in STOPS:
                    break
            assert samples.mask[row, s].sum() == step + 1


# -- log-probabilities


@jax.jit
def forward(params, tokens, mask):
    """Log-probabilities of every next token."""
    return jax.nn.log_softmax(MODEL.logits(params, MODEL.apply(params, tokens, mask=mask)[0]))


@pytest.mark.parametrize("mask", [None, RAGGED], ids=["whole", "ragged"])
def test_log_probs_are_those_of_a_forward_pass_over_prompt_and_answer(mask):
    samples = sample(prompt_mask=mask, temperature=0.5, top_p=0.8, stop_tokens=STOPS, pad_token=3)
    known = jnp.ones_like(PROMPTS) if mask is None else mask
    text = jnp.concatenate([PROMPTS, samples.tokens[:, 0]], 1)
    real = jnp.concatenate([known, samples.mask[:, 0]], 1)
    log_probs = forward(MODEL.params, text, real)
    for row in range(len(text)):
        slots = np.flatnonzero(real[row])
        answer = [i for i in range(1, len(slots)) if slots[i] >= PROMPTS.shape[1]]
        wanted = [log_probs[row, slots[i - 1], text[row, slots[i]]] for i in answer]
        found = samples.log_probs[row, 0][samples.mask[row, 0]]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_sampling_log_probs_are_those_of_the_distribution_that_was_drawn_from():
    logits = jnp.array([2.0, 1.0, 0.5, 0.0, -1.0, -1.0])
    found = draw(logits, temperature=2.0, top_k=3)
    kept = jax.nn.log_softmax(logits[:3] / 2)
    assert set(found.tokens) == {0, 1, 2}
    np.testing.assert_allclose(found.sampling_log_probs, kept[found.tokens], atol=1e-6)
    np.testing.assert_allclose(found.log_probs, jax.nn.log_softmax(logits)[found.tokens], atol=1e-6)
    plain = draw(logits)
    np.testing.assert_array_equal(plain.sampling_log_probs, plain.log_probs)


# -- the distribution

LOGITS = np.array([1.5, 0.0, -1.0, 1.5, 0.7, -2.0])


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 3}, {"top_p": 0.75}, {"top_k": 5, "top_p": 0.9}],
    ids=str,
)
def test_frequencies_are_the_probabilities(options):
    counts = np.bincount(draw(LOGITS, **options).tokens, minlength=6)
    scaled = LOGITS / options.get("temperature", 1.0)
    order = np.argsort(-scaled, kind="stable")[: options.get("top_k", 6)]
    probabilities = np.zeros(6)
    probabilities[order] = np.exp(scaled[order]) / np.exp(scaled[order]).sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= options.get("top_p", 1.0)]] = 0
    probabilities /= probabilities.sum()
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    expected = counts.sum() * probabilities[possible]
    statistic = np.sum((counts[possible] - expected) ** 2 / expected)
    # The 99.9 % quantiles of chi-square with 1 to 5 degrees of freedom.
    assert statistic < [10.83, 13.82, 16.27, 18.47, 20.52][possible.sum() - 2]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-30}], ids=str)
def test_the_limits_of_every_option_are_greedy(options):
    greedy = sample(temperature=0.0)
    came = sample(**options)
    np.testing.assert_array_equal(came.tokens, greedy.tokens)
    np.testing.assert_allclose(came.log_probs, greedy.log_probs, atol=1e-6)
    np.testing.assert_array_equal(came.sampling_log_probs, jnp.zeros_like(came.log_probs))
    np.testing.assert_array_equal(came.tokens[:, 0], came.tokens[:, 1])


@pytest.mark.parametrize("options", [{"top_k": VOCABULARY}, {"top_k": 100}, {"top_p": 1.0}], ids=str)
def test_options_that_keep_everything_change_nothing(options):
    assert_same(sample(**options), sample())


def test_greedy_takes_the_first_of_equals():
    assert (draw([0.0, 1.0, 1.0, -1.0, 1.0, 0.0], temperature=0.0).tokens == 1).all()


def test_a_nucleus_of_equals_has_as_many_as_it_needs():
    logits = jnp.zeros((3, 8))
    assert decoding.top_p_mask(logits, p=0.5).sum(-1).tolist() == [4, 4, 4]
    assert decoding.top_p_mask(logits, p=0.51).sum(-1).tolist() == [5, 5, 5]
    assert decoding.top_k_mask(logits, k=3).tolist() == [[True] * 3 + [False] * 5] * 3


def test_a_nucleus_of_all_keeps_what_rounding_would_drop():
    logits = jnp.array([100.0, 0.0, -100.0, -jnp.inf])
    assert decoding.top_p_mask(logits, p=1.0)[:3].all()
    assert decoding.top_p_mask(logits, p=0.999).tolist() == [True, False, False, False]


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_logits_give_finite_log_probs(scale):
    found = draw(LOGITS * scale, temperature=1e-3, top_p=0.9)
    assert np.isfinite(found.log_probs).all()
    assert np.isfinite(found.sampling_log_probs).all()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "stop_tokens": STOPS}], ids=str)
def test_hyperparameters_may_be_traced_or_not(options):
    @jax.jit
    def run():
        return decoding.sample(KEY, MODEL.params, MODEL, PROMPTS, max_new_tokens=6, num_samples=2, **options)

    assert_same(run(), sample(**options))


# -- stop tokens and padding


def test_an_answer_ends_with_its_stop_token():
    free = sample()
    stopped = sample(stop_tokens=STOPS, pad_token=9)
    is_stop = np.isin(free.tokens, STOPS)
    before = np.cumsum(is_stop, -1) - is_stop
    np.testing.assert_array_equal(stopped.mask, before == 0)
    np.testing.assert_array_equal(stopped.tokens, np.where(before == 0, free.tokens, 9))
    np.testing.assert_allclose(stopped.log_probs, np.where(before == 0, free.log_probs, 0), atol=1e-5)
    np.testing.assert_array_equal(stopped.stopped, is_stop.any(-1))
    assert stopped.stopped.any()
    assert not stopped.stopped.all()
    assert free.mask.all()
    assert not free.stopped.any()


def test_the_loop_ends_when_all_rows_have_stopped():
    class Counting(Table):
        def apply(self, params, tokens, *, mask=None, cache=None):
            jax.debug.callback(lambda: calls.append(1))
            return super().apply(params, tokens, mask=mask, cache=cache)

    calls = []
    prompts = jnp.zeros((4, 1), int)
    run = jax.jit(
        lambda params: decoding.sample(KEY, params, Counting(), prompts, max_new_tokens=1000, stop_tokens=(0,))
    )
    samples = run(jnp.zeros(2))
    jax.effects_barrier()
    longest = int(samples.mask.sum(-1).max())
    assert longest < 30
    assert len(calls) == longest


def test_a_prompt_that_is_all_padding_has_no_answer():
    samples = sample(prompt_mask=RAGGED.at[1].set(0), stop_tokens=STOPS, pad_token=2)
    assert not samples.mask[1].any()
    assert (samples.tokens[1] == 2).all()
    assert (samples.log_probs[1] == 0).all()
    known = sample(prompt_mask=RAGGED, stop_tokens=STOPS, pad_token=2)
    for row in (0, 2, 3):
        assert_same(jax.tree.map(lambda x, row=row: x[row], samples), jax.tree.map(lambda x, row=row: x[row], known))


def test_the_side_of_the_padding_does_not_matter():
    left = sample(jnp.array([[0, 0, 4, 2, 7]]), jnp.array([[0, 0, 1, 1, 1]]))
    right = sample(jnp.array([[4, 2, 7, 0, 0]]), jnp.array([[1, 1, 1, 0, 0]]))
    none = sample(jnp.array([[4, 2, 7]]))
    assert_same(left, none)
    assert_same(right, none)


# -- what random numbers depend on


def test_samples_of_a_prompt_are_independent():
    found = draw(np.zeros(6)).tokens.reshape(8, 500)
    pairs = np.zeros((6, 6))
    np.add.at(pairs, (found[:, :-1].ravel(), found[:, 1:].ravel()), 1)
    expected = pairs.sum() / 36
    assert np.sum((pairs - expected) ** 2 / expected) < 66.6  # 99.9 % of chi-square with 35 degrees of freedom
    assert (found[0] == found[1]).mean() < 0.25


def test_a_batch_can_be_split_if_its_prompts_have_ids():
    whole = sample(prompt_mask=RAGGED, stop_tokens=STOPS)
    for rows in ([0, 3], [2, 1]):
        rows = jnp.array(rows)
        part = sample(PROMPTS[rows], RAGGED[rows], prompt_ids=rows, stop_tokens=STOPS)
        assert_same(part, jax.tree.map(lambda x, rows=rows: x[rows], whole))


def test_more_samples_and_more_tokens_leave_the_others_as_they_were():
    few, many = sample(num_samples=1, max_new_tokens=4), sample()
    assert_same(few, jax.tree.map(lambda x: x[:, :1, :4] if x.ndim == 3 else x[:, :1], many))


def test_the_key_matters_and_may_be_of_the_old_kind():
    assert (sample().tokens != sample(key=jax.random.key(8)).tokens).any()
    assert_same(sample(key=jax.random.key_data(KEY)), sample())


# -- transformations


def test_without_jit():
    few = decoding.sample(KEY, MODEL.params, MODEL, PROMPTS, max_new_tokens=4)
    assert_same(few, sample(num_samples=1, max_new_tokens=4))


def test_seeds_are_a_vmap_over_parameters():
    keys = jax.random.split(KEY, 2)
    params = jax.vmap(lambda key: models.language_model(CONFIG, key=key))(keys).params

    @jax.jit
    @jax.vmap
    def run(key, params):
        return decoding.sample(key, params, MODEL, PROMPTS, RAGGED, max_new_tokens=6, num_samples=2, stop_tokens=STOPS)

    together = run(keys, params)
    for i, key in enumerate(keys):
        alone = sample(prompt_mask=RAGGED, key=key, params=jax.tree.map(lambda x, i=i: x[i], params), stop_tokens=STOPS)
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone)


def test_no_gradient_flows():
    def total(params):
        samples = decoding.sample(KEY, params, MODEL, PROMPTS, max_new_tokens=2)
        return jnp.sum(samples.log_probs) + jnp.sum(samples.sampling_log_probs)

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(MODEL.params)))


def test_float64_where_it_is_enabled(x64):
    cached, plain = (sample(prompt_mask=RAGGED, top_p=0.9, stop_tokens=(2,), use_cache=c) for c in (True, False))
    assert_same(cached, plain)
    assert cached.log_probs.dtype == jnp.float32
    assert cached.tokens.dtype == jnp.int32


def test_a_mesh_changes_no_token():
    mesh = parallel.make_mesh("data=2,model=4")
    model = models.language_model(dataclasses.replace(CONFIG, num_kv_heads=4), key=jax.random.key(0))
    run = jax.jit(
        lambda key, params, prompts, mask: decoding.sample(
            key, params, model, prompts, mask, max_new_tokens=6, num_samples=2, top_p=0.9, stop_tokens=STOPS
        )
    )
    wanted = run(KEY, model.params, PROMPTS, RAGGED)
    params = jax.device_put(model.params, parallel.tree_shardings(model.params, models.decoder_sharding_rules(), mesh))
    assert_same(run(KEY, params, *parallel.shard_batch((PROMPTS, RAGGED), mesh)), wanted)


# -- refusals


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"prompts": PROMPTS[0]}, "prompts"),
        ({"prompts": PROMPTS * 1.0}, "prompts"),
        ({"prompts": PROMPTS[:, :0]}, "prompts"),
        ({"prompt_mask": RAGGED[:2]}, "prompt_mask"),
        ({"prompt_ids": jnp.arange(3)}, "prompt_ids"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": jnp.int32(3)}, "max_new_tokens"),
        ({"max_new_tokens": 20}, "length"),
        ({"num_samples": 0}, "num_samples"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": jnp.ones(4)}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 2.0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"stop_tokens": (-1,)}, "stop_tokens"),
        ({"stop_tokens": jnp.ones((2, 2), int)}, "stop_tokens"),
        ({"pad_token": 0.5}, "pad_token"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_refused_at_trace_time(changes, argument):
    arguments = {"prompts": PROMPTS, "max_new_tokens": 3, **changes}
    with pytest.raises(ValueError, match=rf"argument `{argument}`"):
        jax.eval_shape(lambda: decoding.sample(KEY, MODEL.params, MODEL, **arguments))
