"""Losses per example for classification, from logits `[..., C]` and labels."""

from reweight.losses.classification.composition import (
    comp_sum_bound,
    comp_sum_calibration,
    comp_sum_loss,
)
from reweight.losses.classification.distributionally_robust import (
    aldr_kl,
    ldr_kl,
)
from reweight.losses.classification.margin import (
    crammer_singer,
    ldam,
    weston_watkins,
)
from reweight.losses.classification.noise_robust import (
    asymmetric_generalized_cross_entropy,
    asymmetric_unhinged,
    brier_loss,
    generalized_cross_entropy,
    jensen_shannon,
    mean_absolute_error,
    nce_agce,
    nce_aul,
    nce_rce,
    normalized_cross_entropy,
    reverse_cross_entropy,
    robust_log_loss,
    symmetric_cross_entropy,
    truncation_mask,
)
from reweight.losses.classification.priors import (
    LadeStatistics,
    estimate_label_prior,
    lade,
    logit_adjusted_cross_entropy,
)
from reweight.losses.classification.softmax import (
    cross_entropy,
    focal_loss,
)
from reweight.losses.classification.spherical import (
    SPHERICAL_LOSSES,
    KernelSums,
    SphericalStatistics,
    kernel_sums,
    spherical_loss,
    spherical_softmax_cross_entropy,
    spherical_statistics,
    squared_error,
    taylor_softmax_cross_entropy,
    update_kernel_sums,
    z_loss,
)
from reweight.losses.classification.stable_softmax import (
    log_stablemax,
    stablemax,
    stablemax_cross_entropy,
)

__all__ = [
    "SPHERICAL_LOSSES",
    "KernelSums",
    "LadeStatistics",
    "SphericalStatistics",
    "aldr_kl",
    "asymmetric_generalized_cross_entropy",
    "asymmetric_unhinged",
    "brier_loss",
    "comp_sum_bound",
    "comp_sum_calibration",
    "comp_sum_loss",
    "crammer_singer",
    "cross_entropy",
    "estimate_label_prior",
    "focal_loss",
    "generalized_cross_entropy",
    "jensen_shannon",
    "kernel_sums",
    "lade",
    "ldam",
    "ldr_kl",
    "log_stablemax",
    "logit_adjusted_cross_entropy",
    "mean_absolute_error",
    "nce_agce",
    "nce_aul",
    "nce_rce",
    "normalized_cross_entropy",
    "reverse_cross_entropy",
    "robust_log_loss",
    "spherical_loss",
    "spherical_softmax_cross_entropy",
    "spherical_statistics",
    "squared_error",
    "stablemax",
    "stablemax_cross_entropy",
    "symmetric_cross_entropy",
    "taylor_softmax_cross_entropy",
    "truncation_mask",
    "update_kernel_sums",
    "weston_watkins",
    "z_loss",
]
