"""What happens to a model while it is trained: diagnoses of gradients, features and groups, which change nothing."""

from reweight.dynamics.generative_augmentation import (
    GaussianGenerator,
    GeneralizationGap,
    RuleLosses,
    gaussian_generator,
    generalization_gap,
    generate,
    mean_rule,
    rule_losses,
)
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
    "GaussianGenerator",
    "GeneralizationGap",
    "GradientSplit",
    "LinearRule",
    "RuleLosses",
    "class_accuracies",
    "disparity_gap",
    "feature_drift",
    "gaussian_generator",
    "generalization_gap",
    "generate",
    "gradient_split",
    "mean_rule",
    "robust_gaussian_classifier",
    "rule_losses",
]
