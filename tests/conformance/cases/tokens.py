"""Token statistics, from hidden states and from logits."""

import numpy as np

from conformance.case import Case
from reweight import tokens

FEATURES, VOCABULARY, TOP = 4, 13, 3
ALL = tokens.TokenStatistics._fields
WITHOUT_A_REFERENCE = ("log_probs", "entropy", "logsumexp", "sum_squares", "top_ids", "top_log_probs", "top_mass")


def own(rng, n):
    return {
        "hidden": rng.normal(size=(n, FEATURES)),
        "kernel": 0.5 * rng.normal(size=(FEATURES, VOCABULARY)),
        "targets": rng.integers(0, VOCABULARY, n),
    }


def both(rng, n):
    return {
        **own(rng, n),
        "reference_hidden": rng.normal(size=(n, FEATURES + 1)),
        "reference_kernel": 0.5 * rng.normal(size=(FEATURES + 1, VOCABULARY)),
    }


def transposed(rng, n):
    arrays = own(rng, n)
    return {**arrays, "kernel": arrays["kernel"].T.copy()}


def from_logits(rng, n):
    return {
        "logits": 2 * rng.normal(size=(n, VOCABULARY)),
        "targets": rng.integers(0, VOCABULARY, n),
        "reference_logits": 2 * rng.normal(size=(n, VOCABULARY)),
    }


def log_softmax(logits):
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def statistics_of(
    logits, targets, reference_logits=None, mask=None, statistics=("log_probs",), temperature=1.0, logit_cap=None, **_
):
    def squashed(raw):
        return (raw if logit_cap is None else logit_cap * np.tanh(raw / logit_cap)) / temperature

    logits = squashed(logits)
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    top = np.argsort(-log_p, axis=-1, kind="stable")[:, :TOP]
    found = {
        "log_probs": np.take_along_axis(log_p, targets[:, None], -1)[:, 0],
        "entropy": -np.sum(p * log_p, -1),
        "logsumexp": np.log(np.sum(np.exp(logits), -1)),
        "sum_squares": np.sum(p * p, -1),
        "top_ids": top,
        "top_log_probs": np.take_along_axis(log_p, top, -1),
        "top_mass": np.sum(np.take_along_axis(p, top, -1), -1),
    }
    if reference_logits is not None:
        log_q = log_softmax(squashed(reference_logits))
        q = np.exp(log_q)
        log_m = np.log((p + q) / 2)
        found["forward_kl"] = np.sum(q * (log_q - log_p), -1)
        found["reverse_kl"] = np.sum(p * (log_p - log_q), -1)
        found["jensen_shannon"] = np.sum(p * (log_p - log_m) + q * (log_q - log_m), -1) / 2
    if mask is not None:
        for name, value in found.items():
            found[name] = np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, -1 if name == "top_ids" else 0)
    return tuple(found[name] for name in ALL if name in statistics)


def statistics_from_hidden(
    hidden, kernel, targets, reference_hidden=None, reference_kernel=None, kernel_layout="DV", **rest
):
    reference = None if reference_hidden is None else reference_hidden @ reference_kernel
    return statistics_of(hidden @ (kernel if kernel_layout == "DV" else kernel.T), targets, reference, **rest)


def a_target_that_is_no_token_has_no_log_probability(probe):
    arrays = probe.arrays()
    wanted = probe.value(arrays)
    for unknown in (-100, -1, VOCABULARY):
        found = probe.value({**arrays, "targets": np.where(np.arange(16) == 3, unknown, arrays["targets"])})
        assert found.log_probs[3] == 0
        for name, value in found._asdict().items():
            if value is not None and name != "log_probs":
                np.testing.assert_array_equal(value, getattr(wanted, name))


def top_ids_of_masked_rows_are_no_tokens(probe):
    arrays = probe.arrays()
    found = probe.value(arrays).top_ids
    assert (found[~arrays["mask"]] == -1).all()
    assert (found[arrays["mask"]] >= 0).all()


BAD = {
    "temperature": (0.0, -1.0, np.inf),
    "logit_cap": (0.0, -1.0, np.inf),
    "top_k": (0, VOCABULARY + 1, 2.5),
    "statistics": ("log_probs", ("log_prob",), ()),
}
BAD_KERNELS = {
    "kernel": (np.zeros((FEATURES + 1, VOCABULARY)), np.zeros(FEATURES), np.zeros((FEATURES, VOCABULARY), int)),
    "kernel_layout": ("VDV", None),
    "vocab_chunk": (0, 2.5),
    "vocab_shards": (0, 5),
}
EVERYTHING = {"statistics": ALL, "top_k": TOP, "temperature": 0.7, "logit_cap": 3.0}
REFERENCE = ("reference_hidden", "reference_kernel")

CASES = [
    Case(
        function=tokens.token_statistics,
        defaults={"temperature": 1.0},
        inputs=own,
        fixed=("kernel",),
        mask="mask",
        differentiable=("hidden", "kernel"),
        reference=statistics_from_hidden,
        invariants=(a_target_that_is_no_token_has_no_log_probability,),
        bad={name: BAD[name] for name in ("temperature", "logit_cap", "statistics")} | BAD_KERNELS,
    ),
    Case(
        function=tokens.token_statistics,
        variant="in chunks",
        inputs=own,
        hyper={"statistics": WITHOUT_A_REFERENCE, "top_k": TOP, "vocab_chunk": 5},
        fixed=("kernel",),
        mask="mask",
        differentiable=("hidden", "kernel"),
        reference=lambda vocab_chunk, **arrays: statistics_from_hidden(**arrays),
        invariants=(a_target_that_is_no_token_has_no_log_probability, top_ids_of_masked_rows_are_no_tokens),
        bad={"top_k": BAD["top_k"]},
    ),
    Case(
        function=tokens.token_statistics,
        variant="in chunks, against a reference",
        inputs=both,
        hyper={**EVERYTHING, "vocab_chunk": 4},
        fixed=("kernel", "reference_kernel"),
        mask="mask",
        hidden=("hidden", "targets", "reference_hidden"),
        differentiable=("hidden", "kernel"),
        stopped=REFERENCE,
        reference=lambda vocab_chunk, **arrays: statistics_from_hidden(**arrays),
        bad={
            "reference_kernel": (np.zeros((FEATURES + 1, VOCABULARY + 1)), np.zeros(3)),
            "reference_kernel_layout": ("VDV",),
            **BAD,
        },
    ),
    Case(
        function=tokens.token_statistics,
        variant="tied embeddings",
        inputs=transposed,
        hyper={"statistics": ("log_probs", "entropy"), "kernel_layout": "VD", "vocab_chunk": 1},
        fixed=("kernel",),
        mask="mask",
        differentiable=("hidden", "kernel"),
        reference=lambda vocab_chunk, **arrays: statistics_from_hidden(**arrays),
    ),
    Case(
        function=tokens.token_statistics_from_logits,
        defaults={"temperature": 1.0},
        inputs=lambda rng, n: {name: a for name, a in from_logits(rng, n).items() if name != "reference_logits"},
        mask="mask",
        differentiable=("logits",),
        reference=statistics_of,
        invariants=(a_target_that_is_no_token_has_no_log_probability,),
        bad={name: BAD[name] for name in ("temperature", "logit_cap", "statistics")},
    ),
    Case(
        function=tokens.token_statistics_from_logits,
        variant="against a reference",
        inputs=from_logits,
        hyper=EVERYTHING,
        mask="mask",
        differentiable=("logits",),
        stopped=("reference_logits",),
        reference=statistics_of,
        invariants=(a_target_that_is_no_token_has_no_log_probability, top_ids_of_masked_rows_are_no_tokens),
        bad=BAD,
    ),
]
