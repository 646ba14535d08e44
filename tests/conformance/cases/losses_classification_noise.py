"""Classification losses for noisy labels: hinges, LDR-KL, bounded and symmetric losses."""

import numpy as np

from conformance.case import BatchLossCase, Case
from conformance.cases.losses_classification import (
    CLASSES,
    a_constant_changes_nothing,
    an_unknown_label_costs_nothing,
    hard,
)
from conformance.cases.losses_classification_families import LOGITS, OF_LABELS, of_label, probabilities
from reweight.losses import classification as losses

EXAMPLES = 40

# -- the formulas once more, in NumPy


def ahead(scores, labels, margin):
    own = np.eye(scores.shape[-1])[labels]
    return scores - of_label(scores, labels)[:, None] + margin * (1 - own)


def normalized(logits, normalize):
    if normalize == "softplus_mean":
        logits = np.logaddexp(0, logits)
    return logits if normalize == "none" else logits / np.abs(logits).mean(-1, keepdims=True)


def ldr_kl(logits, labels, lam, margin, normalize="none"):
    scores = ahead(normalized(logits, normalize), labels, margin)
    return lam * np.log(np.mean(np.exp(scores / np.reshape(lam, (-1, 1))), -1))


def aldr_kl(steps, num_examples, lam, alpha, margin, normalize):
    table, values = np.full(num_examples, lam), []
    for arrays in steps:
        logits, labels, indices = arrays["logits"], arrays["labels"], arrays["indices"]
        scores = normalized(logits, normalize)
        p = probabilities(scores / table[indices][:, None]) + 1e-5
        p /= p.sum(-1, keepdims=True)
        slowness = alpha * np.log(CLASSES)
        now = lam - lam * np.sum(p * np.log(CLASSES * p), -1) / slowness
        loss = ldr_kl(logits, labels, now, margin, normalize) - slowness / (2 * lam) * (now - lam) ** 2
        values.append(np.where(arrays["mask"], loss, 0))
        table[indices[arrays["mask"]]] = now[arrays["mask"]]
    return values


def of_probability(formula):
    """A formula of the probability of the label alone."""
    return lambda logits, labels, **hyper: formula(of_label(probabilities(logits), labels), **hyper)


def jensen_shannon(logits, labels, weight):
    label, p = np.eye(CLASSES)[labels], probabilities(logits)
    mixed = weight * label + (1 - weight) * p
    terms = weight * np.where(label > 0, -np.log(mixed), 0) + (1 - weight) * p * np.log(p / mixed)
    return terms.sum(-1) / (-(1 - weight) * np.log(1 - weight))


def normalized_cross_entropy(logits, labels):
    logs = np.log(probabilities(logits))
    return of_label(logs, labels) / logs.sum(-1)


def reverse_cross_entropy(logits, labels, floor=1e-4):
    return -np.sum(np.clip(probabilities(logits), 1e-7, 1) * np.log(np.clip(np.eye(CLASSES)[labels], floor, 1)), -1)


def robust_log_loss(logits, labels, theta, form):
    p, own = probabilities(logits), np.eye(CLASSES)[labels]
    if form == "published":
        others = np.sum((1 - own) * np.log(theta + p), -1) / (CLASSES - 1)
        return np.log((1 + theta) / theta) - np.log(theta + of_label(p, labels)) + others
    odd = np.exp((1 - own) * logits - logits.sum(-1, keepdims=True)) + theta
    return np.log(odd.sum(-1)) / (CLASSES - 1) - np.log(theta + of_label(p, labels))


def agce(p, a, q):
    return ((a + 1) ** q - (a + p) ** q) / q


def aul(p, a, q):
    return ((a - p) ** q - (a - 1) ** q) / q


def summed(passive):
    def loss(logits, labels, active_weight, passive_weight, **hyper):
        other = passive(logits, labels, **hyper)
        return active_weight * normalized_cross_entropy(logits, labels) + passive_weight * other

    return loss


def indexed(rng, n):
    return {**hard(rng, n), "indices": rng.permutation(EXAMPLES)[:n]}


INVARIANT = (a_constant_changes_nothing, an_unknown_label_costs_nothing)
AQ = {"a": (0.0, np.inf), "q": (0.0, np.inf)}
SUM = {"active_weight": (-1.0, np.inf), "passive_weight": (-1.0, np.inf)}
SUMMED = {"active_weight": 0.4, "passive_weight": 2.0}
ONES = {"active_weight": 1.0, "passive_weight": 1.0}


def case(function, reference, hyper=None, bad=None, defaults=None, invariants=INVARIANT, **more):
    return Case(
        function=function,
        **OF_LABELS,
        hyper=hyper or {},
        reference=reference,
        invariants=invariants,
        bad={**(bad or {}), **LOGITS},
        defaults=defaults or {},
        **more,
    )


LDR = {"lam": (0.0, np.inf), "margin": (-1.0, np.inf), "normalize": ("l2",)}

CASES = [
    *(
        case(function, formula, {"margin": 0.8}, {"margin": (-1.0, np.inf)}, {"margin": 1.0})
        for function, formula in (
            (losses.crammer_singer, lambda logits, labels, margin: np.max(ahead(logits, labels, margin), -1)),
            (
                losses.weston_watkins,
                lambda logits, labels, margin: np.mean(np.maximum(ahead(logits, labels, margin), 0), -1),
            ),
        )
    ),
    *(
        case(
            losses.ldr_kl,
            ldr_kl,
            {"lam": 1.7, "margin": 0.3, "normalize": normalize},
            LDR,
            {"lam": 1.0, "margin": 0.0},
            INVARIANT if normalize == "none" else INVARIANT[1:],
            variant=normalize,
        )
        for normalize in ("none", "l1_mean", "softplus_mean")
    ),
    *(
        BatchLossCase(
            function=losses.aldr_kl,
            variant=normalize,
            inputs=indexed,
            hyper={"num_examples": EXAMPLES, "lam": 1.5, "alpha": 1.6, "margin": 0.2, "normalize": normalize},
            differentiable=("logits",),
            reference=aldr_kl,
            bad={**LDR, "num_examples": (0, 2.5), "alpha": (1.0, np.inf), **LOGITS},
            defaults={"lam": 10.0, "alpha": 2.0, "margin": 0.1},
        )
        for normalize in ("l1_mean", "none")
    ),
    case(
        losses.generalized_cross_entropy,
        of_probability(lambda p, q, k: (1 - np.maximum(p, k) ** q) / q),
        {"q": 0.6, "k": 0.1},
        {"q": (-0.1, 1.1), "k": (-0.1, 1.0)},
        {"q": 0.7, "k": 0.0},
    ),
    Case(
        function=losses.truncation_mask,
        inputs=hard,
        stopped=("logits",),
        hyper={"k": 0.1},
        reference=of_probability(lambda p, k: p > k),
        bad={"k": (-0.1, 1.0), **LOGITS},
        defaults={"k": 0.3},
        bf16=None,
    ),
    case(losses.mean_absolute_error, of_probability(lambda p: 2 * (1 - p))),
    case(
        losses.brier_loss,
        lambda logits, labels: np.sum((np.eye(CLASSES)[labels] - probabilities(logits)) ** 2, -1),
    ),
    case(losses.reverse_cross_entropy, reverse_cross_entropy, {"floor": 0.01}, {"floor": (0.0, 1.0)}, {"floor": 1e-4}),
    case(
        losses.symmetric_cross_entropy,
        of_probability(lambda p, balance, scale: -(1 - balance) * np.log(p) + balance * scale * (1 - p)),
        {"balance": 0.3, "scale": 3.0},
        {"balance": (-0.1, 1.1), "scale": (-1.0, np.inf)},
        {"balance": 0.5, "scale": 4.0},
    ),
    case(losses.normalized_cross_entropy, normalized_cross_entropy),
    case(
        losses.asymmetric_generalized_cross_entropy,
        of_probability(agce),
        {"a": 0.6, "q": 0.6},
        AQ,
        {"a": 1.0, "q": 2.0},
    ),
    case(
        losses.asymmetric_unhinged,
        of_probability(aul),
        {"a": 1.7, "q": 1.3},
        {**AQ, "a": (1.0, np.inf)},
        {"a": 1.5, "q": 0.9},
    ),
    case(losses.jensen_shannon, jensen_shannon, {"weight": 0.3}, {"weight": (0.0, 1.0)}, {"weight": 0.5}),
    *(
        case(
            losses.robust_log_loss,
            robust_log_loss,
            {"theta": 0.3, "form": form},
            {"theta": (0.0, np.inf), "form": ("other",)},
            {"theta": 1.0},
            INVARIANT if form == "published" else INVARIANT[1:],
            variant=form,
        )
        for form in ("released", "published")
    ),
    case(losses.nce_rce, summed(reverse_cross_entropy), SUMMED, SUM, ONES, blames=("reverse_cross_entropy",)),
    case(
        losses.nce_agce,
        summed(of_probability(agce)),
        {**SUMMED, "a": 2.0, "q": 1.3},
        {**SUM, **AQ},
        {**ONES, "a": 3.0, "q": 1.5},
        blames=("asymmetric_generalized_cross_entropy",),
    ),
    case(
        losses.nce_aul,
        summed(of_probability(aul)),
        {**SUMMED, "a": 2.0, "q": 1.3},
        {**SUM, **AQ, "a": (1.0, np.inf)},
        {**ONES, "a": 6.0, "q": 1.5},
        blames=("asymmetric_unhinged",),
    ),
]
