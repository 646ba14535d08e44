"""What happens to a model while it is trained: diagnoses of gradients, features and groups, which change nothing."""

from reweight.dynamics.robust_disparity import (
    ClassAccuracies,
    DisparityGap,
    LinearRule,
    class_accuracies,
    disparity_gap,
    robust_gaussian_classifier,
)
from reweight.dynamics.stability_gap import GradientSplit, feature_drift, gradient_split

__all__ = [
    "ClassAccuracies",
    "DisparityGap",
    "GradientSplit",
    "LinearRule",
    "class_accuracies",
    "disparity_gap",
    "feature_drift",
    "gradient_split",
    "robust_gaussian_classifier",
]
