"""Old and new classes: distillation, aligned heads, kept examples, and prototypes that follow the features."""

import functools

import jax.numpy as jnp
import numpy as np

from conformance.case import Case
from reweight.losses import continual as losses

C, K, D = 5, 3, 4
TASKS = np.array([0, 0, 1, 1, -1])


def softmax(scores, axis=-1):
    mass = np.exp(scores - scores.max(axis, keepdims=True))
    return mass / mass.sum(axis, keepdims=True)


def with_old(rng, n):
    return {"logits": 2 * rng.normal(size=(n, C)), "old_logits": 2 * rng.normal(size=(n, K))}


def labelled(rng, n):
    return {**with_old(rng, n), "labels": rng.integers(0, C, n)}


OLD = np.array([True, False, True])
KNOWN = np.array([True, True, True, False, True])


def distillation(logits, old_logits, temperature, old_mask=None):
    columns = np.flatnonzero(np.ones(K, bool) if old_mask is None else old_mask)
    p, q = (softmax(z[:, columns] / temperature) for z in (logits, old_logits))
    return -np.sum(q * np.log(p), axis=1)


def mixed(logits, labels, old_logits, temperature, distillation_weight=None, class_mask=None, old_mask=None):
    known, old = (np.ones(size, bool) if m is None else m for size, m in ((C, class_mask), (K, old_mask)))
    share = old.sum() / known.sum() if distillation_weight is None else distillation_weight
    p = softmax(np.where(known, logits, -np.inf))[np.arange(len(labels)), labels]
    learned = np.where(p > 0, -np.log(np.where(p > 0, p, 1)), 0)
    return (1 - share) * learned + share * distillation(logits, old_logits, temperature, old_mask)


def an_unknown_label_costs_the_distillation_alone(probe):
    arrays = probe.arrays()
    arrays["labels"][:] = C
    kept = distillation(**{k: arrays[k] for k in ("logits", "old_logits")}, temperature=2.0)
    np.testing.assert_allclose(probe.value(arrays, temperature=2.0), K / C * kept, rtol=1e-5)


def head(rng, n):
    return {"kernel": rng.normal(size=(n, D)), "new_classes": np.arange(n) % 3 == 1, "class_mask": np.arange(n) % 5 > 0}


def aligned(kernel, new_classes, class_mask, per_class=False, class_axis=0):
    old, new = class_mask & ~new_classes, class_mask & new_classes
    lengths = np.linalg.norm(kernel, axis=1)
    found = lengths if per_class else lengths[new].mean()
    return kernel * np.where(new, lengths[old].mean() / found, 1)[:, None]


def chosen(features, mask=None, **hyper):
    """What was picked, in the order of choice: it does not depend on how the examples are numbered."""
    picked = losses.herding(features, mask=mask, **hyper)
    return jnp.where(picked[:, None] < 0, 0.0, features[picked])


def greedy(features, num_selected, normalize, mask):
    rows = np.flatnonzero(mask)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True) if normalize else features
    mean, picked = unit[rows].mean(0), []
    for _ in range(num_selected):
        rest = [i for i in rows if i not in picked]
        if rest:
            picked.append(min(rest, key=lambda i: np.linalg.norm(mean - unit[[*picked, i]].mean(0))))
    return np.concatenate([features[picked], np.zeros((num_selected - len(picked), features.shape[1]))])


def prototypes(rng, n):
    return {
        "features": rng.normal(size=(n, D)),
        "prototypes": rng.normal(size=(C, D)),
        "labels": rng.integers(0, C, n),
    }


def relations(rng, n):
    return {
        "features": rng.normal(size=(n, D)),
        "old_features": rng.normal(size=(n, D)),
        "prototypes": rng.normal(size=(C, D)),
        "old_prototypes": rng.normal(size=(C, D)),
        "tasks": TASKS,
    }


def views(rng, n):
    arrays = relations(rng, n)
    arrays |= {name: rng.normal(size=(n, 2, D)) for name in ("features", "old_features")}
    return {**arrays, "projections": rng.normal(size=(n, 2, 3)), "labels": np.arange(n) % 3 + 2}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def named(features, prototypes, labels, mask):
    return np.where(mask, 1 - np.sum(unit(features) * unit(prototypes)[labels], axis=-1), 0)


def related(features, old_features, prototypes, old_prototypes, tasks, temperature, axis, mask):
    """For single examples the terms of a sum of divergences, in the form in which none is negative."""
    rows, found = np.flatnonzero(mask), np.zeros(len(features))
    for task in set(tasks[tasks >= 0]):
        own = np.flatnonzero(tasks == task)
        p, q = (
            softmax(f[rows] @ unit(w)[own].T / temperature, axis=0 if axis == "samples" else 1)
            for f, w in ((features, prototypes), (old_features, old_prototypes))
        )
        found[rows] += np.sum(q * np.log(q / p) + p - q, axis=1)
    return found * (len(rows) if axis == "samples" else 1)


def total(projections, labels, mask, features, old_features, prototypes, old_prototypes, tasks, **hyper):
    vectors, found = unit(projections), np.zeros(len(labels))
    temperature, rows = hyper["temperature"], np.flatnonzero(mask)
    everyone = [(i, v) for i in rows for v in range(2)]
    for i, v in everyone:
        others = [a for a in everyone if a != (i, v)]
        scores = np.array([vectors[i, v] @ vectors[a] for a in others]) / temperature
        same = np.array([labels[a[0]] == labels[i] for a in others])
        cost = np.log(np.exp(scores).sum()) - scores[same].mean()
        found[i] += cost * temperature / hyper["base_temperature"] / 2
        found[i] += hyper["prototype_weight"] / 2 * (1 - unit(features[i, v]) @ unit(prototypes[labels[i]]))
    for v in range(2):
        found += hyper["distillation_weight"] / 2 * related(
            features[:, v], old_features[:, v], prototypes, old_prototypes, tasks,
            hyper["relation_temperature"], "classes", mask,
        )  # fmt: skip
    return found


TEMPERATURE = {"temperature": (0.0, -1.0, np.inf)}
OLD_LOGITS = {"old_logits": (np.zeros((16, C + 1)), np.zeros((16, K), int)), "logits": (np.zeros((16, C), int),)}
FROZEN = {"stopped": ("old_features", "old_prototypes"), "fixed": ("prototypes", "old_prototypes", "tasks")}
OF_PROTOTYPES = {"prototypes": (np.zeros((C, D + 1)), np.zeros((C, D), int))}
OF_RELATIONS = {
    **OF_PROTOTYPES,
    "old_prototypes": (np.zeros((C - 1, D)),),
    "tasks": (np.zeros(C - 1, int),),
    "axis": ("rows",),
}
POINTS = {name: (1.0, -1.0) for name in ("features", "old_features", "prototypes", "old_prototypes", "projections")}

CASES = [
    *(
        Case(
            function=losses.old_class_distillation,
            variant="some old" if old is not None else "",
            call=functools.partial(losses.old_class_distillation, old_mask=old),
            inputs=with_old,
            hyper={"temperature": 1.5},
            differentiable=("logits",),
            stopped=("old_logits",),
            reference=functools.partial(distillation, old_mask=old),
            bad={**TEMPERATURE, **OLD_LOGITS},
            free={"old_mask": "which classes there were, given by the case"},
            defaults={"temperature": 2.0},
        )
        for old in (None, OLD)
    ),
    *(
        Case(
            function=losses.distilled_cross_entropy,
            variant=variant,
            call=functools.partial(losses.distilled_cross_entropy, **masks),
            inputs=labelled,
            hyper={"temperature": 1.5, **share},
            differentiable=("logits",),
            stopped=("old_logits",),
            reference=functools.partial(mixed, **masks),
            invariants=() if masks or share else (an_unknown_label_costs_the_distillation_alone,),
            bad={**TEMPERATURE, **OLD_LOGITS, **({"distillation_weight": (-0.1, 1.1)} if share else {})},
            free={name: "which classes there are, given by the case" for name in ("class_mask", "old_mask")},
            defaults={"temperature": 2.0},
        )
        for variant, masks, share in (
            ("", {}, {}),
            ("room for more", {"class_mask": KNOWN, "old_mask": OLD}, {}),
            ("given share", {}, {"distillation_weight": 0.3}),
        )
    ),
    *(
        Case(
            function=losses.align_weights,
            variant="each class" if per_class else "",
            inputs=head,
            hyper={"class_axis": 0, "per_class": per_class},
            differentiable=("kernel",),
            couples=True,
            reference=aligned,
            bad={"class_axis": (2, -3), "kernel": (np.zeros(16),), "class_mask": (np.ones((16, 1), bool),)},
            defaults={"class_axis": -1},
        )
        for per_class in (False, True)
    ),
    *(
        Case(
            function=losses.herding,
            variant="directions" if normalize else "as they are",
            call=chosen,
            inputs=lambda rng, n: {"features": rng.normal(size=(n, D)) + 1},
            returns="batch",
            hyper={"num_selected": 6, "normalize": normalize},
            mask="mask",
            constant=("features",),
            reference=greedy,
            bad={"num_selected": (0, 1.5)},
            bf16=None,
        )
        for normalize in (True, False)
    ),
    Case(
        function=losses.prototype_scores,
        call=lambda labels, **given: losses.prototype_scores(**given),
        inputs=prototypes,
        fixed=("prototypes",),
        differentiable=("features", "prototypes"),
        reference=lambda features, prototypes, labels: features @ unit(prototypes).T,
        bad=OF_PROTOTYPES,
        free={"labels": "not an argument of this one"},
    ),
    Case(
        function=losses.prototype_loss,
        inputs=prototypes,
        fixed=("prototypes",),
        mask="mask",
        differentiable=("prototypes",),
        stopped=("features",),
        reference=named,
        bad=OF_PROTOTYPES,
    ),
    *(
        Case(
            function=losses.relation_distillation,
            variant=axis,
            inputs=relations,
            hyper={"temperature": 0.7, "axis": axis},
            mask="mask",
            differentiable=("features", "prototypes"),
            couples=axis == "samples",
            reference=related,
            bad={**TEMPERATURE, **OF_RELATIONS},
            defaults={"temperature": 1.0},
            **FROZEN,
        )
        for axis in ("classes", "samples")
    ),
    Case(
        function=losses.prototype_sample_relation,
        inputs=views,
        hyper={
            "temperature": 0.3,
            "base_temperature": 0.2,
            "prototype_weight": 1.5,
            "distillation_weight": 3.0,
            "relation_temperature": 1.2,
        },
        mask="mask",
        differentiable=("projections", "features", "prototypes"),
        couples=True,
        surrogate=True,  # features get a gradient from the relations alone
        reference=total,
        bad={
            **TEMPERATURE,
            **OF_RELATIONS,
            "base_temperature": (0.0, np.inf),
            "relation_temperature": (0.0,),
            "prototype_weight": (-1.0, np.inf),
            "distillation_weight": (-1.0, np.inf),
        },
        defaults={
            "temperature": 0.1,
            "base_temperature": 0.07,
            "prototype_weight": 2.0,
            "distillation_weight": 4.0,
            "relation_temperature": 1.0,
        },
        blames=("supcon", "relation_distillation", "prototype_loss"),
        **FROZEN,
    ),
]
