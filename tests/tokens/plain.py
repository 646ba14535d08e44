"""The statistics once more, from whole logits and by what JAX differentiates itself."""

import jax
import jax.numpy as jnp

from reweight import tokens

ALL = tokens.TokenStatistics._fields


def logits_of(hidden, kernel, *, temperature=1.0, logit_cap=None):
    raw = jnp.dot(hidden, kernel, preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32))
    return (raw if logit_cap is None else logit_cap * jnp.tanh(raw / logit_cap)) / temperature


def statistics(hidden, kernel, targets, reference_hidden, reference_kernel, *, top_k, **squash):
    logits = logits_of(hidden, kernel, **squash)
    log_p = jax.nn.log_softmax(logits)
    log_q = jax.lax.stop_gradient(jax.nn.log_softmax(logits_of(reference_hidden, reference_kernel, **squash)))
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    top, ids = jax.lax.top_k(log_p, top_k)
    return tokens.TokenStatistics(
        log_probs=jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0],
        entropy=-jnp.sum(p * log_p, axis=-1),
        logsumexp=jax.nn.logsumexp(logits, axis=-1),
        sum_squares=jnp.sum(p * p, axis=-1),
        top_ids=ids,
        top_log_probs=top,
        top_mass=jnp.sum(jnp.exp(top), axis=-1),
        forward_kl=jnp.sum(q * (log_q - log_p), axis=-1),
        reverse_kl=jnp.sum(p * (log_p - log_q), axis=-1),
        jensen_shannon=0.5 * jnp.sum(p * (log_p - log_m) + q * (log_q - log_m), axis=-1),
    )


def weighed(found):
    """A sum that gives every number another weight, so that its gradient misses none."""
    floats = [leaf for leaf in jax.tree.leaves(found) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(jnp.sum(leaf * jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape)) for leaf in floats)


def graded(statistics):
    """Value and gradients to hidden states and kernel of `statistics(hidden, kernel, ...)`, and the statistics."""

    def loss(hidden, kernel, *rest):
        found = statistics(hidden, kernel, *rest)
        return weighed(found), found

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
