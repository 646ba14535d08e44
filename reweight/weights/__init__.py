"""Weighting schemes: which examples, classes, groups or tokens count how much."""

from reweight.weights.adversarial import (
    gairat,
    gairat_weights,
)
from reweight.weights.base import (
    Weighting,
    chain,
    effective_sample_size,
    max_weight_share,
    normalize,
    stateless,
    uniform,
    weight_entropy,
)
from reweight.weights.dro import (
    CompositionalState,
    chi2_dro,
    chi2_dro_value,
    chi2_dro_weights,
    compositional_kl_dro,
    cvar_dro,
    cvar_value,
    cvar_weights,
    kl_dro,
    kl_dro_value,
    kl_dro_weights,
)
from reweight.weights.groups import (
    GroupDROState,
    GroupMeans,
    group_dro,
    group_dro_weights,
    group_means,
    lookup,
)
from reweight.weights.history import (
    SmoothedState,
    smoothed,
    table_gather,
    table_init,
    table_scatter,
)
from reweight.weights.imbalance import (
    class_balanced,
    class_weighted,
    effective_number_weights,
    focal,
    focal_weights,
    inverse_frequency,
    inverse_frequency_weights,
)
from reweight.weights.noise import (
    SmallLossState,
    small_loss,
    small_loss_weights,
)
from reweight.weights.objectives import (
    EntropyBalanceState,
    LossBalanceState,
    TemperatureBalance,
    entropy_balance,
    normalized_loss_balance,
)
from reweight.weights.propensity import (
    importance,
    importance_weights,
)
from reweight.weights.trajectories import (
    wpo,
    wpo_weights,
)

__all__ = [
    "CompositionalState",
    "EntropyBalanceState",
    "GroupDROState",
    "GroupMeans",
    "LossBalanceState",
    "SmallLossState",
    "SmoothedState",
    "TemperatureBalance",
    "Weighting",
    "chain",
    "chi2_dro",
    "chi2_dro_value",
    "chi2_dro_weights",
    "class_balanced",
    "class_weighted",
    "compositional_kl_dro",
    "cvar_dro",
    "cvar_value",
    "cvar_weights",
    "effective_number_weights",
    "effective_sample_size",
    "entropy_balance",
    "focal",
    "focal_weights",
    "gairat",
    "gairat_weights",
    "group_dro",
    "group_dro_weights",
    "group_means",
    "importance",
    "importance_weights",
    "inverse_frequency",
    "inverse_frequency_weights",
    "kl_dro",
    "kl_dro_value",
    "kl_dro_weights",
    "lookup",
    "max_weight_share",
    "normalize",
    "normalized_loss_balance",
    "small_loss",
    "small_loss_weights",
    "smoothed",
    "stateless",
    "table_gather",
    "table_init",
    "table_scatter",
    "uniform",
    "weight_entropy",
    "wpo",
    "wpo_weights",
]
