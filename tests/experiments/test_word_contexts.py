import jax
import jax.numpy as jnp
import numpy as np

from experiments import many_classes
from experiments.envs import word_contexts

LANGUAGE = word_contexts.language(jax.random.key(0), words=40, roles=3)


def test_words_come_with_their_probabilities():
    drawn = word_contexts.sample(np.random.default_rng(0), LANGUAGE, 60_000)
    probs = np.exp(LANGUAGE.log_probs(drawn.contexts))
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    roles = np.asarray(LANGUAGE.roles)[drawn.contexts]
    for pair in ((0, 0), (2, 1)):
        own = (roles == pair).all(axis=1)
        shares = np.bincount(drawn.labels[own], minlength=40) / own.sum()
        np.testing.assert_allclose(shares, probs[own][0], atol=4 * np.sqrt(0.25 / own.sum()))
    shares = np.bincount(drawn.contexts.ravel(), minlength=40) / drawn.contexts.size
    np.testing.assert_allclose(shares, LANGUAGE.frequencies, atol=0.01)


def test_without_sharpness_the_context_says_nothing():
    language = word_contexts.language(jax.random.key(0), words=40, sharpness=0.0)
    probs = np.exp(language.log_probs(jnp.array([[0, 1], [2, 3]])))
    np.testing.assert_allclose(probs, np.broadcast_to(language.frequencies, (2, 40)), rtol=1e-4)


def test_the_error_is_how_often_the_word_is_not_among_the_first():
    scores = jnp.array([[5.0, 4.0, 3.0, 2.0], [1.0, 4.0, 3.0, 2.0]])
    found = many_classes._errors(scores, jnp.array([0, 0]))
    np.testing.assert_allclose(found[:3], [0.5, 0.5, 0.0])


def test_losses_from_sums_are_those_of_scores():
    hidden, kernel = jax.random.normal(jax.random.key(1), (6, 5)), jax.random.normal(jax.random.key(2), (40, 5))
    labels = jnp.arange(6)
    by_sums = many_classes.METHODS["z_loss"].losses(hidden, kernel, labels)
    hyper = many_classes.METHODS["z_loss"].losses.keywords
    wanted = many_classes.classification.z_loss(hidden @ kernel.T, labels, **hyper)
    np.testing.assert_allclose(by_sums, wanted, rtol=1e-4)
