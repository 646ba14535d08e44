"""Losses from the mean responses of bags."""

import jax
import numpy as np

from conformance.case import BatchLossCase, Case
from reweight.losses import aggregate as losses

M = 5  # the last of which is empty
MEANS = np.array([0.3, 0.8, 0.1, 0.6, 0.4])


def bags(rng, n):
    return {"bag_ids": rng.permutation(np.arange(n) % (M - 1))}


def drawn(rng, n):
    return {"predictions": rng.normal(size=n), **bags(rng, n), "bag_means": MEANS}


def rows(rng, n):
    arrays = {"predictions": rng.normal(size=n), **bags(rng, n)}
    return {**arrays, "responses": MEANS[arrays["bag_ids"]]}


def cost(loss, response, predictions, mean):
    if loss == "squared":
        return (np.mean(predictions) - response) ** 2 if mean else (predictions - response) ** 2
    probs = 1 / (1 + np.exp(-predictions))
    probs = np.mean(probs) if mean else probs
    return -(response * np.log(probs) + (1 - response) * np.log(1 - probs))


def members(predictions, bag_ids, mask):
    return [predictions[mask & (bag_ids == bag)] for bag in range(M)]


def of_bags(predictions, bag_ids, bag_means, mask, loss):
    return interpolated(predictions, bag_ids, bag_means, mask, loss, 0.0)


def of_instances(predictions, bag_ids, bag_means, mask, loss):
    return np.where(mask, cost(loss, bag_means[bag_ids], predictions, mean=False), 0)


def interpolated(predictions, bag_ids, bag_means, mask, loss, rho):
    return np.array([
        (1 - rho) * cost(loss, response, own, mean=True) + rho * np.mean(cost(loss, response, own, mean=False))
        if len(own) else 0.0
        for response, own in zip(bag_means, members(predictions, bag_ids, mask), strict=True)
    ])  # fmt: skip


def in_the_batch(steps, loss, rho, num_bags):
    found = []
    for step in steps:
        ids, mask, predictions = step["bag_ids"], step["mask"], step["predictions"]
        filled = len(set(ids[mask]))
        values = np.zeros(len(ids))
        for i in np.flatnonzero(mask):
            own = predictions[mask & (ids == ids[i])]
            response = step["responses"][i]
            whole, alone = cost(loss, response, own, mean=True), cost(loss, response, predictions[i], mean=False)
            values[i] = mask.sum() / (filled * len(own)) * ((1 - rho) * whole + rho * alone)
        found.append(values)
    return found


def ridge(features, bag_ids, bag_means, mask, rho):
    left, right = 0, 0
    for bag in range(M):
        x = features[mask & (bag_ids == bag)]
        if len(x):
            mean = x.mean(0)
            left = left + (1 - rho) * np.outer(mean, mean) + rho * x.T @ x / len(x)
            right = right + mean * bag_means[bag]
    return np.linalg.solve(left, right)


def sums(values, bag_ids, mask, num_bags):
    own = members(values, bag_ids, mask)
    return np.array([x.sum() for x in own]), np.array([float(len(x)) for x in own])


def without_noise(responses, bag_ids, mask, num_bags, epsilon, clip):
    return np.array([np.mean(np.clip(x, -clip, clip)) if len(x) else 0 for x in members(responses, bag_ids, mask)])


def published(**given):
    return losses.private_bag_means(jax.random.key(0), **given)


def an_example_without_a_bag_counts_for_nothing(probe):
    arrays = probe.arrays()
    arrays["mask"] = arrays["mask"].astype(bool)
    masked, outside = arrays["mask"].copy(), arrays["bag_ids"].copy()
    masked[3], outside[3] = False, M
    np.testing.assert_allclose(
        probe.value({**arrays, "bag_ids": outside}), probe.value({**arrays, "mask": masked}), rtol=1e-6
    )


UNKNOWN = {"loss": ("bce",)}
MEANS_BAD = {"bag_means": (np.ones((M, 1)),)}
COMMON = {
    "mask": "mask",
    "fixed": ("bag_means",),
    "extremes": {"bag_means": (0.0, 1.0)},
    "invariants": (an_example_without_a_bag_counts_for_nothing,),
}
PER_BAG = {
    **COMMON,
    "inputs": drawn,
    "differentiable": ("predictions",),
    "constant": ("bag_means",),
}
RHO = {"rho": (-0.1, 1.1)}
BAGS = {"num_bags": (0, 1.5)}

CASES = [
    *(
        Case(
            function=function,
            variant=loss,
            returns="example" if function is losses.instance_loss else "batch",
            hyper={"loss": loss} | ({"rho": 0.3} if function is losses.interpolated_loss else {}),
            reference=reference,
            bad={**UNKNOWN, **MEANS_BAD, **(RHO if function is losses.interpolated_loss else {})},
            **PER_BAG,
        )
        for loss in ("squared", "logistic")
        for function, reference in (
            (losses.bag_loss, of_bags),
            (losses.instance_loss, of_instances),
            (losses.interpolated_loss, interpolated),
        )
    ),
    *(
        BatchLossCase(
            function=losses.batch_interpolated,
            variant=loss,
            inputs=rows,
            hyper={"loss": loss, "rho": 0.3, "num_bags": M},
            differentiable=("predictions",),
            constant=("responses",),
            extremes={"responses": (0.0, 1.0)},
            surrogate=True,
            reference=in_the_batch,
            bad={**UNKNOWN, **RHO, **BAGS},
        )
        for loss in ("squared", "logistic")
    ),
    Case(
        function=losses.bag_sums,
        inputs=lambda rng, n: {"values": rng.normal(size=n), **bags(rng, n)},
        returns="parts",
        hyper={"num_bags": M},
        mask="mask",
        differentiable=("values",),
        reference=sums,
        bad=BAGS,
    ),
    Case(
        function=losses.interpolated_ridge,
        inputs=lambda rng, n: {"features": rng.normal(size=(n, 2)), **bags(rng, n), "bag_means": MEANS},
        returns="batch",
        hyper={"rho": 0.3},
        constant=("features", "bag_means"),
        reference=ridge,
        bad={**RHO, **MEANS_BAD},
        **COMMON,
    ),
    Case(
        function=losses.private_bag_means,
        call=published,
        inputs=lambda rng, n: {"responses": rng.normal(size=n), **bags(rng, n)},
        returns="batch",
        hyper={"num_bags": M, "epsilon": np.inf, "clip": 0.7},
        mask="mask",
        differentiable=("responses",),
        reference=without_noise,
        bad={"epsilon": (0.0, -1.0), "clip": (0.0, np.inf), **BAGS},
        free={"key": "of the noise, drawn by the case"},
    ),
]
