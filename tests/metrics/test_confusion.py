import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from reweight.metrics import confusion
from reweight.metrics.confusion import Confusion

LABELS = np.array([1, 0, 1, 1, 0, 0, 0, 1, 0, 0])
HARD = np.array([1, 0, 0, 1, 1, 0, 0, 1, 0, 1])
WEIGHTS = np.linspace(0.1, 2.0, 10)
PEERS = {
    confusion.accuracy: sklearn_metrics.accuracy_score,
    confusion.precision: sklearn_metrics.precision_score,
    confusion.recall: sklearn_metrics.recall_score,
    confusion.f_beta: sklearn_metrics.f1_score,
    confusion.jaccard: sklearn_metrics.jaccard_score,
    confusion.balanced_accuracy: sklearn_metrics.balanced_accuracy_score,
    confusion.mcc: sklearn_metrics.matthews_corrcoef,
}
METRICS = (*PEERS, confusion.g_mean, confusion.specificity)


@pytest.mark.parametrize("metric", PEERS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hard_predictions_give_the_metrics_of_scikit_learn(metric, weights):
    came = metric(confusion.counts(HARD, LABELS, weights))
    np.testing.assert_allclose(came, PEERS[metric](LABELS, HARD, sample_weight=weights), rtol=1e-6)


def test_specificity_is_the_recall_of_the_other_class():
    sums = confusion.counts(HARD, LABELS)
    np.testing.assert_allclose(confusion.specificity(sums), confusion.recall(confusion.counts(1 - HARD, 1 - LABELS)))
    geometric = np.sqrt(confusion.specificity(sums) * confusion.recall(sums))
    np.testing.assert_allclose(confusion.g_mean(sums), geometric, rtol=1e-6)


def test_f_beta_weighs_recall_against_precision():
    sums = confusion.counts(HARD, LABELS)
    for beta in (0.5, 2.0):
        wanted = sklearn_metrics.fbeta_score(LABELS, HARD, beta=beta)
        np.testing.assert_allclose(confusion.f_beta(sums, beta=beta), wanted, rtol=1e-6)
    np.testing.assert_allclose(confusion.f_beta(sums, beta=0.0), confusion.precision(sums), rtol=1e-6)
    np.testing.assert_allclose(confusion.f_beta(sums, beta=1e3), confusion.recall(sums), rtol=1e-5)


def test_f_one_is_symmetric_in_precision_and_recall():
    swapped = confusion.f_beta(Confusion(3.0, 4.0, 1.0, 5.0))
    np.testing.assert_allclose(confusion.f_beta(Confusion(3.0, 1.0, 4.0, 5.0)), swapped, rtol=1e-7)


def test_the_sums_of_pieces_add_up_to_those_of_the_whole():
    whole = confusion.counts(HARD, LABELS, WEIGHTS)
    pieces = [confusion.counts(HARD[part], LABELS[part], WEIGHTS[part]) for part in (slice(3), slice(3, 10))]
    for came, wanted in zip(jax.tree.map(jnp.add, *pieces), whole, strict=True):
        np.testing.assert_allclose(came, wanted, rtol=1e-6)
    np.testing.assert_allclose(sum(whole), WEIGHTS.sum(), rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("labels", [np.zeros(4, int), np.ones(4, int), np.array([0, 1, 1, 0])])
@pytest.mark.parametrize("predictions", [np.zeros(4), np.ones(4), np.array([0.0, 1.0, 0.0, 1.0]), np.full(4, 1e-16)])
def test_metrics_and_gradients_are_finite_where_sums_are_zero(metric, labels, predictions):
    value, grad = jax.value_and_grad(lambda p: metric(confusion.counts(p, labels)))(predictions.astype(np.float32))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))
    assert -1 <= value <= 1


@pytest.mark.parametrize(
    ("metric", "sums"),
    [
        (confusion.accuracy, (0.0, 0.0, 0.0, 0.0)),
        (confusion.precision, (0.0, 0.0, 3.0, 2.0)),
        (confusion.recall, (0.0, 1.0, 0.0, 2.0)),
        (confusion.specificity, (1.0, 0.0, 2.0, 0.0)),
        (confusion.f_beta, (0.0, 0.0, 0.0, 2.0)),
        (confusion.jaccard, (0.0, 0.0, 0.0, 2.0)),
        (confusion.balanced_accuracy, (0.0, 1.0, 0.0, 2.0)),
        (confusion.g_mean, (2.0, 0.0, 3.0, 0.0)),
        (confusion.mcc, (2.0, 3.0, 0.0, 0.0)),
    ],
)
def test_where_a_metric_is_not_defined_comes_what_is_asked_for(metric, sums):
    assert metric(Confusion(*sums)) == 0
    assert metric(Confusion(*sums), undefined=0.5) == 0.5


def test_counts_beyond_the_integers_of_float32_do_not_overflow_in_products():
    large = Confusion(*(np.float32(1e12) * np.array([3.0, 1.0, 2.0, 4.0], np.float32)))
    for metric in METRICS:
        np.testing.assert_allclose(metric(large), metric(Confusion(3.0, 1.0, 2.0, 4.0)), rtol=1e-6)


def test_whole_arrays_of_confusion_matrices_give_arrays_of_metrics():
    stacked = jax.vmap(functools.partial(confusion.counts, labels=LABELS))(np.stack([HARD, LABELS]))
    assert confusion.f_beta(stacked).shape == (2,)
    assert confusion.f_beta(stacked)[1] == 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: confusion.counts(HARD, LABELS[:3]), "labels"),
        (lambda: confusion.counts(HARD, LABELS + 0.5), "labels"),
        (lambda: confusion.counts(HARD, LABELS, np.ones(3)), "weights"),
        (lambda: confusion.counts(HARD, LABELS, mask=np.ones(3)), "mask"),
        (lambda: confusion.f_beta(Confusion(1.0, 1.0, 1.0, 1.0), beta=-1.0), "beta"),
        (lambda: confusion.mcc(Confusion(1.0, np.ones(2), 1.0, 1.0)), "fp"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
