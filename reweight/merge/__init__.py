"""One model from several."""

from reweight.merge.ensembles import backdoor_adjustment

__all__ = ["backdoor_adjustment"]
