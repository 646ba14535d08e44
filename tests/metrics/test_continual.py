import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.metrics import continual

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "stability_gap.json").read_text())
CASES = GOLDEN["cases"]
METRICS = (
    continual.average_accuracy,
    continual.average_forgetting,
    continual.min_acc,
    continual.wc_acc,
    continual.windowed_forgetting,
    continual.windowed_plasticity,
    continual.lca,
)


def recorded(case):
    return np.array(case["inputs"]["acc"], float), np.array(case["inputs"]["current_task"])


def drawn(seed=0, time=24, tasks=4):
    rng = np.random.default_rng(seed)
    return rng.random((time, tasks)).astype(np.float32), np.sort(rng.integers(0, tasks, time))


def with_undefined(numbers, undefined):
    return np.array([undefined if number == "nan" else number for number in numbers], float)


@functools.partial(jax.jit, static_argnames=("window", "beta"))
def streamed(accuracies, current_task, window=10, beta=10):
    stream = continual.continual_stream(accuracies.shape[1], window=window, beta=beta)

    def step(state, now):
        record, state = stream.update(state, *now)
        return state, record

    return jax.lax.scan(step, stream.init(), (accuracies, current_task))[1]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_metrics_agree_with_the_golden_numbers(case, x64):
    (accuracies, current), expected, params = recorded(case), case["expected"], case["params"]
    close = functools.partial(np.testing.assert_allclose, rtol=GOLDEN["rtol"], atol=1e-11)
    minima = continual.min_acc(accuracies, current, undefined=-1.0)
    close(minima, with_undefined(expected["min_acc_by_iteration"], -1))
    by_task = continual.min_acc(accuracies, current, per_task=True, undefined=-1.0)
    close(by_task[-1], with_undefined(expected["min_acc_final_by_task"], -1))
    close(continual.wc_acc(accuracies, current), expected["wc_acc"])
    for function in (continual.windowed_forgetting, continual.windowed_plasticity):
        found = function(accuracies, current, window=params["window"])
        close(found, expected[f"{function.__name__}_mean"])
        by_task = function(accuracies, current, window=params["window"], per_task=True)
        close(by_task[-1], expected[f"{function.__name__}_by_task"])
    close(continual.lca(accuracies, current, beta=params["lca_beta"])[-1], expected["lca"])


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_released_search_for_rises_finds_fewer(case, x64):
    (accuracies, current), expected = recorded(case), case["expected"]
    found = continual.windowed_plasticity(accuracies, current, window=case["params"]["window"])
    assert np.all(found >= np.array(expected.get("windowed_plasticity_mean_released_loop", found)) - 1e-11)


@pytest.mark.parametrize("window", [1, 2, 5, None])
@pytest.mark.parametrize("x64_on", [False, True])
def test_a_stream_gives_the_metrics_of_the_whole_record(window, x64_on):
    with jax.enable_x64(x64_on):
        accuracies, current = drawn()
        accuracies = accuracies.astype(np.float64 if x64_on else np.float32)
        record = streamed(accuracies, current, window=window, beta=3)
        for metric in METRICS:
            hyper = {"window": window} if "windowed" in metric.__name__ else {}
            hyper |= {"beta": 3} if metric is continual.lca else {}
            wanted = metric(accuracies, current, **hyper)
            np.testing.assert_allclose(getattr(record, metric.__name__), wanted, rtol=1e-5, atol=1e-6)


def test_a_memory_of_the_stream_does_not_grow_and_knows_no_infinity():
    stream = continual.continual_stream(3, window=5)
    state = stream.init()
    shapes = jax.tree.map(jnp.shape, state)
    for accuracy in (0.2, 0.9):
        record, state = stream.update(state, jnp.array([accuracy, np.nan, np.nan]), jnp.array(0))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((record, state)))
    assert jax.tree.map(jnp.shape, state) == shapes


def test_by_hand():
    accuracies = np.float32([[0.5, 0], [0.9, 0], [0.2, 0.3], [0.6, 0.7], [0.8, 0.8]])
    current = np.array([0, 0, 1, 1, 1])
    np.testing.assert_allclose(continual.average_accuracy(accuracies, current), [0.5, 0.9, 0.25, 0.65, 0.8])
    np.testing.assert_allclose(continual.average_forgetting(accuracies, current), [0, 0, 0.7, 0.3, 0.1], atol=1e-6)
    np.testing.assert_allclose(continual.min_acc(accuracies, current), [0, 0, 0.2, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(continual.wc_acc(accuracies, current), [0.5, 0.9, 0.25, 0.45, 0.5], rtol=1e-6)
    drops = continual.windowed_forgetting(accuracies, current, window=2, per_task=True)
    np.testing.assert_allclose(drops[-1], [0.7, 0], rtol=1e-6)
    np.testing.assert_allclose(continual.lca(accuracies, current, beta=3), [0, 0, 0, 0, 0.6], rtol=1e-6)


@pytest.mark.parametrize("order", [[1, 2, 3], [0, 2, 3], [3]], ids=str)
def test_a_task_that_is_never_trained_is_measured_from_its_first_evaluation(order):
    accuracies, current = drawn()[0], np.sort(np.resize(order, 24))
    record = streamed(accuracies, current)
    for metric in METRICS:
        wanted = metric(accuracies, current)
        np.testing.assert_allclose(getattr(record, metric.__name__), wanted, rtol=1e-5, atol=1e-6)
    left_out = min(set(range(4)) - set(order))
    known = current >= left_out
    lost = continual.average_forgetting(accuracies, current, per_task=True)[:, left_out]
    own = accuracies[:, left_out]
    np.testing.assert_allclose(lost[known], own[np.argmax(known)] - own[known], rtol=1e-5, atol=1e-6)


def test_worst_case_accuracy_is_made_of_the_current_task_and_the_minima():
    accuracies, current = drawn(3)
    k = current + 1
    own = accuracies[np.arange(len(current)), current]
    wanted = own / k + (1 - 1 / k) * continual.min_acc(accuracies, current)
    np.testing.assert_allclose(continual.wc_acc(accuracies, current), wanted, rtol=1e-5)


def test_accuracy_that_only_rises_is_never_forgotten():
    accuracies, current = drawn(1)
    rising = np.sort(accuracies, axis=0)
    np.testing.assert_array_equal(continual.windowed_forgetting(rising, current, window=7), 0)
    assert np.all(continual.average_forgetting(rising, current) <= 0)


def test_all_evaluations_as_window_give_the_largest_drop_ever():
    accuracies, current = drawn(2, tasks=1)
    a = accuracies[:, 0]
    wanted = max(a[m] - a[n] for n in range(len(a)) for m in range(n + 1))
    for window in (None, len(a), 10 * len(a)):
        np.testing.assert_allclose(continual.windowed_forgetting(accuracies, current, window=window)[-1], wanted)
    np.testing.assert_array_equal(continual.windowed_forgetting(accuracies, current, window=1), 0)


def test_drops_of_accuracies_are_rises_of_their_negatives():
    accuracies, current = drawn(4)
    drops = continual.windowed_forgetting(accuracies, current, window=4, per_task=True)
    np.testing.assert_allclose(continual.windowed_plasticity(-accuracies, current, window=4, per_task=True), drops)


def test_which_past_task_is_which_does_not_matter():
    accuracies, current = drawn(5)
    later = current == current.max()
    order = np.array([2, 0, 1, 3])
    # From the start of the last task on, the others are alike but for their names.
    one = continual.min_acc(accuracies[later], current[later])
    other = continual.min_acc(accuracies[later][:, order], current[later])
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_tasks_to_come_are_never_read_and_no_gradient_flows(metric):
    accuracies, current = drawn(6)
    later = np.arange(4) > current[:, None]
    wanted = metric(accuracies, current)
    np.testing.assert_array_equal(metric(np.where(later, np.nan, accuracies), current), wanted)
    grad = jax.grad(lambda a: metric(a, current).sum())(jnp.asarray(accuracies))
    np.testing.assert_array_equal(grad, 0)
    assert np.all(np.isfinite(wanted))


@pytest.mark.parametrize("metric", METRICS)
def test_no_evaluation_gives_an_empty_series(metric):
    assert metric(jnp.zeros((0, 3)), jnp.zeros(0, int)).shape == (0,)


def test_mistakes_are_named():
    accuracies, current = drawn()
    with pytest.raises(ValueError, match="min_acc: argument `current_task`"):
        continual.min_acc(accuracies, current[:-1])
    with pytest.raises(ValueError, match="windowed_forgetting: argument `window`"):
        continual.windowed_forgetting(accuracies, current, window=0)
    stream = continual.continual_stream(4)
    with pytest.raises(ValueError, match="continual_stream: argument `accuracies`"):
        stream.update(stream.init(), jnp.zeros(3), jnp.array(0))
