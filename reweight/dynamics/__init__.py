"""What happens to a model while it is trained: diagnoses of gradients, features and groups, which change nothing."""

from reweight.dynamics.stability_gap import GradientSplit, feature_drift, gradient_split

__all__ = ["GradientSplit", "feature_drift", "gradient_split"]
