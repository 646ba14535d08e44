"""The decoder: what it reads, where it stands, and the numbers of the published models of its kind."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reweight import models, optim, parallel
from reweight.tokens import token_statistics

KEY = jax.random.key(0)
GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "decoder_transformers.json").read_text())
CONFIG = models.DecoderConfig(
    vocab_size=16,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_length=32,
    qk_norm=True,
)
VARIANTS = {
    "qk-norm": CONFIG,
    "capped": dataclasses.replace(CONFIG, qk_norm=False, tie_embeddings=False, logit_cap=2.0, num_kv_heads=4),
}


def paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def tokens_of(rows, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (rows, length)))


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return models.language_model(VARIANTS[request.param], key=KEY)


@pytest.fixture(scope="module")
def run(model):
    """Hidden states, in one executable a shape."""
    return jax.jit(lambda tokens, **kwargs: model.apply(model.params, tokens, **kwargs)[0])


def close(came, wanted, tolerance=2e-5):
    np.testing.assert_allclose(came, wanted, rtol=tolerance, atol=tolerance)


# -- shapes and parameters


def test_hidden_states_logits_and_the_output_kernel_have_the_shapes_that_are_promised(model):
    hidden, cache = model.apply(model.params, tokens_of(3, 5))
    assert hidden.shape == (3, 5, 32)
    assert cache is None
    logits = model.logits(model.params, hidden)
    assert logits.shape == (3, 5, 16)
    assert logits.dtype == jnp.float32
    kernel, layout = model.kernel(model.params)
    assert kernel.shape == {"VD": (16, 32), "DV": (32, 16)}[layout]
    plain = hidden @ (kernel.T if layout == "VD" else kernel)
    cap = model.config.logit_cap
    close(logits, plain if cap is None else cap * jnp.tanh(plain / cap))


def test_token_statistics_take_the_hidden_states_and_the_kernel(model, run):
    ids = tokens_of(2, 7)
    hidden = run(ids)
    kernel, layout = model.kernel(model.params)
    cap = model.config.logit_cap
    found = token_statistics(hidden[:, :-1], kernel, ids[:, 1:], kernel_layout=layout, logit_cap=cap)
    same = model.token_statistics(model.params, hidden[:, :-1], ids[:, 1:], statistics=("log_probs", "entropy"))
    close(same.log_probs, found.log_probs)
    log_probs = jax.nn.log_softmax(model.logits(model.params, hidden))
    close(same.entropy, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)[:, :-1])
    close(found.log_probs, jnp.take_along_axis(log_probs[:, :-1], ids[:, 1:, None], -1)[..., 0])


def test_parameters_are_float32_in_nested_dicts_with_the_layer_in_front():
    params = models.language_model(dataclasses.replace(CONFIG, tie_embeddings=False, dtype="bfloat16"), key=KEY).params
    assert {name: leaf.shape for name, leaf in paths(params).items()} == {
        "embed/embedding": (16, 32),
        "head/kernel": (32, 16),
        "layers/attention/key/kernel": (2, 32, 2, 8),
        "layers/attention/key_norm/scale": (2, 8),
        "layers/attention/out/kernel": (2, 4, 8, 32),
        "layers/attention/query/kernel": (2, 32, 4, 8),
        "layers/attention/query_norm/scale": (2, 8),
        "layers/attention/value/kernel": (2, 32, 2, 8),
        "layers/attention_norm/scale": (2, 32),
        "layers/mlp/down/kernel": (2, 48, 32),
        "layers/mlp/gate/kernel": (2, 32, 48),
        "layers/mlp/up/kernel": (2, 32, 48),
        "layers/mlp_norm/scale": (2, 32),
        "norm/scale": (32,),
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_layouts_of_the_parameters_are_found_by_their_names():
    params = models.language_model(dataclasses.replace(CONFIG, tie_embeddings=False), key=KEY).params
    layouts = paths(optim.param_layouts(params))
    assert layouts["layers/attention/query/kernel"] == optim.ParamLayout((1,), (0,))
    assert layouts["layers/attention/out/kernel"] == optim.ParamLayout((1, 2), (0,))
    assert layouts["layers/mlp/down/kernel"] == optim.ParamLayout((1,), (0,))
    assert layouts["embed/embedding"] == optim.ParamLayout((1,))
    assert not layouts["layers/attention/key_norm/scale"].project


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("0.2M", 206_400),
        ("1M", 988_544),
        ("10M", 9_836_160),
        # As published for SmolLM-135M, Qwen3-0.6B and Llama-3.2-1B.
        ("135M", 134_515_008),
        ("0.6B", 596_049_920),
        ("1B", 1_235_814_400),
    ],
)
def test_presets_have_the_size_of_their_name(name, parameters):
    model = jax.eval_shape(lambda key: models.language_model(models.DECODERS[name], key=key), KEY)
    assert count(model.params) == parameters
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    hidden, _ = jax.eval_shape(lambda params, tokens: model.apply(params, tokens), model.params, tokens)
    assert hidden.shape == (2, 64, models.DECODERS[name].d_model)
    assert hidden.dtype == models.DECODERS[name].dtype


def test_initial_parameters_have_the_documented_variance():
    config = dataclasses.replace(models.DECODERS["1M"], vocab_size=512)
    params = models.language_model(config, key=KEY).params
    layers = params["layers"]
    wanted = {
        "embedding": (params["embed"]["embedding"], 1 / 128),
        "query": (layers["attention"]["query"]["kernel"], 1 / 128),
        "up": (layers["mlp"]["up"]["kernel"], 1 / 128),
        "down": (layers["mlp"]["down"]["kernel"], 1 / 512 / 8),
        "out": (layers["attention"]["out"]["kernel"], 1 / 128 / 8),
    }
    for name, (array, variance) in wanted.items():
        assert np.var(array) == pytest.approx(variance, rel=0.05), name
    first, second = layers["mlp"]["up"]["kernel"][:2]
    assert abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.05


def test_the_module_is_the_functional_form():
    module = models.Decoder(CONFIG, rngs=nnx.Rngs(KEY))
    model = models.language_model(CONFIG, key=KEY)
    tokens = tokens_of(2, 6)
    close(module(tokens)[0], model.apply(model.params, tokens)[0], 1e-6)


# -- the numbers of published implementations

_RENAMED = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def from_state_dict(state, config):
    """Our parameters from those of a `LlamaForCausalLM` or `Qwen3ForCausalLM`, whose kernels are [out, in]."""
    array = {name: np.asarray(value, np.float32) for name, value in state.items()}

    def stack(name, *shape):
        weights = [array[f"model.layers.{i}.{name}.weight"] for i in range(config.num_layers)]
        return np.stack([weight.T.reshape(shape) if shape else weight for weight in weights])

    heads, kv = (config.num_heads, config.head_dim), (config.num_kv_heads, config.head_dim)
    attention = {
        "query": {"kernel": stack("self_attn.q_proj", -1, *heads)},
        "key": {"kernel": stack("self_attn.k_proj", -1, *kv)},
        "value": {"kernel": stack("self_attn.v_proj", -1, *kv)},
        "out": {"kernel": stack("self_attn.o_proj", *heads, -1)},
    }
    if config.qk_norm:
        attention["query_norm"] = {"scale": stack("self_attn.q_norm")}
        attention["key_norm"] = {"scale": stack("self_attn.k_norm")}
    params = {
        "embed": {"embedding": array["model.embed_tokens.weight"]},
        "layers": {
            "attention": attention,
            "mlp": {name: {"kernel": stack(f"mlp.{name}_proj", *shape)} for name, shape in _mlp(config).items()},
            **{ours: {"scale": stack(theirs)} for ours, theirs in _RENAMED.items()},
        },
        "norm": {"scale": array["model.norm.weight"]},
    }
    if not config.tie_embeddings:
        params["head"] = {"kernel": array["lm_head.weight"].T}
    return params


def _mlp(config):
    wide, narrow = (config.d_model, config.d_ff), (config.d_ff, config.d_model)
    return {"gate": wide, "up": wide, "down": narrow}


def gradient_as_published(grads, name):
    """The gradient of a parameter under the name and in the layout of the state dict."""
    if name == "model.norm.weight":
        return grads["norm"]["scale"]
    layer, part = int(name.split(".")[2]), name.split(".", 3)[3]
    layers = grads["layers"]
    found = {
        "self_attn.k_proj.weight": layers["attention"]["key"]["kernel"],
        "input_layernorm.weight": layers["attention_norm"]["scale"],
        "self_attn.q_norm.weight": layers["attention"].get("query_norm", {}).get("scale"),
    }[part][layer]
    return found.reshape(len(found), -1).T if found.ndim > 1 else found


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_values_and_gradients_are_those_of_transformers(case):
    config = models.DecoderConfig(**case["config"])
    shapes = models.language_model(config, key=KEY)
    params = from_state_dict(case["state_dict"], config)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes.params)
    tokens, mask = jnp.asarray(case["tokens"]), jnp.asarray(case["mask"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        hidden, _ = shapes.apply(params, tokens, mask=mask)
        logits = shapes.logits(params, hidden)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1)[..., 0]
        return -jnp.sum(log_probs * mask[:, 1:]) / jnp.sum(mask[:, 1:]), (hidden, logits)

    (loss, (hidden, logits)), grads = run(params)
    rtol = GOLDEN["rtol"]
    real = np.asarray(mask, bool)
    close(np.asarray(hidden)[real], np.asarray(case["hidden"])[real], rtol)
    close(np.asarray(logits)[real], np.asarray(case["logits"])[real], 2 * rtol)
    close(loss, case["loss"], rtol)
    for name, wanted in case["gradients"].items():
        close(gradient_as_published(grads, name), wanted, rtol)
    left = case["left"]
    hidden, _ = jax.jit(shapes.apply)(params, jnp.asarray(left["tokens"]), mask=jnp.asarray(left["mask"]))
    real = np.asarray(left["mask"], bool)
    close(np.asarray(shapes.logits(params, hidden))[real], np.asarray(left["logits"])[real], 2 * rtol)


# -- what a token reads


def test_what_comes_later_changes_nothing(run):
    tokens = tokens_of(2, 9)
    changed = tokens.at[:, 6].set((tokens[:, 6] + 1) % 16)
    before, after = run(tokens), run(changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after)[:, 6:].max(-1) > 1e-4).all()


def test_only_differences_of_positions_matter(run):
    tokens = tokens_of(2, 9)
    positions = jnp.tile(jnp.arange(9), (2, 1))
    base = run(tokens)
    np.testing.assert_array_equal(run(tokens, positions=positions), base)
    close(run(tokens, positions=positions + 17), base)
    assert np.abs(run(tokens, positions=2 * positions) - base)[:, 1:].max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right", "both", "inside"])
def test_padding_anywhere_changes_no_real_token(run, side):
    tokens = tokens_of(2, 6)
    slots = {"left": range(3, 9), "right": range(6), "both": range(2, 8), "inside": (0, 1, 3, 5, 6, 8)}[side]
    slots = np.asarray(slots)
    padded = jnp.full((2, 9), 3).at[:, slots].set(tokens)
    mask = jnp.zeros((2, 9), bool).at[:, slots].set(True)
    hidden = run(padded, mask=mask)
    close(hidden[:, slots], run(tokens))
    assert (hidden[~mask] == 0).all()
    other = run(jnp.where(mask, padded, 10**6), mask=mask.astype(jnp.float32))
    np.testing.assert_array_equal(other, hidden)


def test_rows_do_not_read_each_other(run):
    tokens = tokens_of(2, 9)
    close(run(tokens)[1], run(tokens.at[0].set(0))[1], 1e-6)


def test_a_row_that_is_all_padding_gives_zeros_and_no_gradient(model):
    tokens = tokens_of(2, 5)

    @jax.jit
    @jax.value_and_grad
    def loss(params, mask):
        hidden, _ = model.apply(params, tokens, mask=mask)
        return jnp.sum(jnp.sin(model.logits(params, hidden)) * hidden[..., :1])

    value, grads = loss(model.params, jnp.zeros((2, 5)))
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))
    _, half = loss(model.params, jnp.array([[0] * 5, [1] * 5]))
    _, whole = loss(model.params, jnp.array([[0] * 5, [1, 1, 1, 1, 1]]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(half))
    jax.tree.map(close, half, whole)


# -- the cache


@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1, 1, 1), (4, 3), (5, 1, 1)])
def test_a_cache_gives_the_hidden_states_of_one_pass(model, split):
    tokens = tokens_of(3, 7)
    mask = jnp.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1], [1] * 7])
    apply = jax.jit(model.apply)
    whole, _ = apply(model.params, tokens, mask=mask)
    cache, parts, start = model.init_cache(3, 9), [], 0
    for length in split:
        part = slice(start, start + length)
        hidden, cache = apply(model.params, tokens[:, part], mask=mask[:, part], cache=cache)
        parts.append(hidden)
        start += length
    close(jnp.concatenate(parts, 1), whole)
    assert cache.next_slot == 7
    np.testing.assert_array_equal(cache.length, mask.sum(1))


# -- the options


def test_shared_key_heads_are_equal_key_heads():
    grouped = models.language_model(CONFIG, key=KEY)
    full = models.language_model(dataclasses.replace(CONFIG, num_kv_heads=4), key=KEY)
    params = jax.tree.map(lambda x: x, grouped.params)
    for name in ("key", "value"):
        kernel = params["layers"]["attention"][name]["kernel"]
        params["layers"]["attention"][name] = {"kernel": jnp.repeat(kernel, 2, axis=2)}
    tokens = tokens_of(2, 7)
    close(jax.jit(full.apply)(params, tokens)[0], jax.jit(grouped.apply)(grouped.params, tokens)[0])


def test_a_tied_kernel_is_the_embedding():
    model = models.language_model(CONFIG, key=KEY)
    assert "head" not in model.params
    assert model.kernel(model.params)[0] is model.params["embed"]["embedding"]


def test_remat_changes_neither_values_nor_gradients_and_saves_memory():
    config = dataclasses.replace(CONFIG, num_layers=6, max_length=128)
    tokens = tokens_of(4, 128)

    def compiled(remat):
        model = models.language_model(dataclasses.replace(config, remat=remat), key=KEY)

        @jax.value_and_grad
        def loss(params):
            return jnp.sum(jnp.sin(model.apply(params, tokens)[0]))

        return jax.jit(loss).lower(model.params).compile(), model.params

    (plain, params), (remat, _) = compiled(False), compiled(True)
    (value, grads), (again, regrads) = plain(params), remat(params)
    close(value, again)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), grads, regrads)
    assert remat.memory_analysis().temp_size_in_bytes < plain.memory_analysis().temp_size_in_bytes / 2


def test_a_deep_decoder_is_no_larger_a_program():
    def size(layers):
        model = jax.eval_shape(
            lambda key: models.language_model(dataclasses.replace(CONFIG, num_layers=layers), key=key), KEY
        )
        return len(jax.jit(model.apply).lower(model.params, tokens_of(1, 4)).as_text())

    assert size(24) < 1.1 * size(2)


def test_bfloat16_computes_about_the_same():
    model = models.language_model(CONFIG, key=KEY)
    half = models.language_model(dataclasses.replace(CONFIG, dtype=jnp.bfloat16), key=KEY)
    tokens = tokens_of(2, 9)
    hidden, _ = jax.jit(half.apply)(half.params, tokens)
    assert hidden.dtype == jnp.bfloat16
    assert half.init_cache(1, 2).keys.dtype == jnp.bfloat16
    difference = np.asarray(hidden, np.float32) - jax.jit(model.apply)(model.params, tokens)[0]
    assert np.sqrt(np.mean(difference**2)) < 0.03
    assert half.logits(half.params, hidden).dtype == jnp.float32


def test_float64_where_it_is_enabled(x64):
    model = models.language_model(CONFIG, key=jax.random.key(0))
    wide = models.LanguageModel(
        jax.tree.map(lambda x: x.astype(jnp.float64), model.params), dataclasses.replace(CONFIG, dtype="float64")
    )
    tokens = tokens_of(2, 9)
    hidden, _ = jax.jit(wide.apply)(wide.params, tokens)
    assert wide.logits(wide.params, hidden).dtype == jnp.float64
    narrow, cache = jax.jit(model.apply)(model.params, tokens, cache=model.init_cache(2))
    assert narrow.dtype == jnp.float32
    assert cache.length.dtype == jnp.int32
    close(hidden, narrow)


# -- transformations


def test_seeds_are_a_vmap_of_keys_and_of_parameters(model):
    keys = jax.random.split(KEY, 2)
    stacked = jax.jit(jax.vmap(lambda key: models.language_model(model.config, key=key)))(keys)
    tokens = tokens_of(2, 6)

    @jax.jit
    @jax.vmap
    @jax.grad
    def gradient(params):
        return jnp.sum(jnp.sin(model.logits(params, model.apply(params, tokens)[0])))

    together = gradient(stacked.params)
    for i, key in enumerate(keys):
        alone = models.language_model(model.config, key=key).params
        jax.tree.map(lambda a, b, i=i: close(a[i], b, 1e-6), stacked.params, alone)
        one = gradient(jax.tree.map(lambda x: x[None], alone))
        jax.tree.map(lambda a, b, i=i: close(a[i], b[0], 2e-4), together, one)


@pytest.mark.parametrize("fsdp", [False, True])
def test_a_mesh_changes_no_number(fsdp):
    mesh = parallel.make_mesh("data=2,model=4")
    config = dataclasses.replace(CONFIG, num_kv_heads=4, tie_embeddings=False)
    rules = models.decoder_sharding_rules(data="data" if fsdp else None)
    model = models.language_model(config, key=KEY)
    shardings = parallel.tree_shardings(model.params, rules, mesh)
    params = jax.device_put(model.params, shardings)
    tokens = tokens_of(4, 7)
    mask = jnp.arange(7) < jnp.array([[7], [5], [3], [0]])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, tokens, mask):
        hidden, _ = model.apply(params, tokens, mask=mask)
        logits = model.logits(params, hidden)
        return jnp.sum(jnp.where(mask[..., None], jnp.sin(logits), 0)), (hidden, logits)

    (_, wanted), gradient = run(model.params, tokens, mask)
    (_, came), sharded = run(params, *parallel.shard_batch((tokens, mask), mesh))
    jax.tree.map(lambda a, b: close(a, b, 1e-4), (came, sharded), (wanted, gradient))
    pieces = {name: leaf.addressable_shards[0].data.size / leaf.size for name, leaf in paths(params).items()}
    for name, share in pieces.items():
        assert share == (1 if name.endswith("scale") else 1 / 8 if fsdp else 1 / 4), name


def test_parameters_can_be_made_where_they_belong():
    mesh = parallel.make_mesh("data=2,model=4")
    config = dataclasses.replace(CONFIG, num_kv_heads=4)

    def init(key):
        return models.language_model(config, key=key)

    shapes = jax.eval_shape(init, KEY)
    shardings = parallel.tree_shardings(shapes, models.decoder_sharding_rules(), mesh)
    model = jax.jit(init, out_shardings=shardings)(KEY)
    kernel = model.params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 32, 12)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), model.params, init(KEY).params)


# -- refusals


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"d_model": 2.5}, "d_model"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"norm_eps": -1e-6}, "norm_eps"),
        ({"logit_cap": 0.0}, "logit_cap"),
        ({"qk_norm": "yes"}, "qk_norm"),
        ({"dtype": "int32"}, "dtype"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, argument):
    with pytest.raises(ValueError, match=rf"models.DecoderConfig: argument `{argument}`"):
        dataclasses.replace(CONFIG, **changes)


def test_equal_configurations_hash_alike():
    assert len({CONFIG, dataclasses.replace(CONFIG, dtype="float32")}) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: m.apply(m.params, t[0]), "Decoder: argument `tokens`"),
        (lambda m, t: m.apply(m.params, t * 1.0), "Decoder: argument `tokens`"),
        (lambda m, t: m.apply(m.params, jnp.zeros((1, 33), int)), r"Decoder: argument `tokens`.*\[1, 32\]"),
        (lambda m, t: m.apply(m.params, t, mask=jnp.ones(4)), "Decoder: argument `mask`"),
        (lambda m, t: m.apply(m.params, t, positions=jnp.ones((2, 3), int)), "Decoder: argument `positions`"),
        (lambda m, t: m.apply(m.params, t, cache=m.init_cache(2, 3)), "Decoder: argument `tokens`.*slots"),
        (lambda m, t: m.apply(m.params, t, cache=m.init_cache(3, 4)), "Decoder: argument `cache`"),
        (lambda m, t: m.init_cache(2, 33), "init_cache: argument `length`"),
        (lambda m, t: m.init_cache(-1), "init_cache: argument `batch_size`"),
        (lambda m, t: m.logits(m.params, t), "logits: argument `hidden`"),
        (lambda m, t: models.language_model("1B", key=KEY), "language_model: argument `config`"),
        (lambda m, t: models.decoder_sharding_rules(data="model"), "decoder_sharding_rules: argument `data`"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(models.language_model(CONFIG, key=KEY), tokens_of(2, 4))
