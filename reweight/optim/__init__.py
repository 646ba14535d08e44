"""Optax transforms: optimizers from papers, and the parameter layouts that they share."""

from reweight.optim.layout import (
    LayoutRule,
    ParamLayout,
    default_layout,
    flax_layout,
    layout_rules,
    param_layouts,
    path_name,
    stacked,
)
from reweight.optim.projected_momentum import (
    ScaleByAdamPState,
    ScaleBySGDPState,
    adamp,
    scale_by_adamp,
    scale_by_sgdp,
    sgdp,
)
from reweight.optim.projection import (
    CHANNEL,
    LAYER,
    NONE,
    SKIPPED,
    ProjectionState,
    project_radial,
    with_projection,
)
from reweight.optim.scale_invariance import channel_norms, effective_step, named_views, norm_growth
from reweight.optim.sharpness import ascent_step, sharpness_aware, surrogate_gap_gradient
from reweight.optim.subnetwork import subnet_mask

__all__ = [
    "CHANNEL",
    "LAYER",
    "NONE",
    "SKIPPED",
    "LayoutRule",
    "ParamLayout",
    "ProjectionState",
    "ScaleByAdamPState",
    "ScaleBySGDPState",
    "adamp",
    "ascent_step",
    "channel_norms",
    "default_layout",
    "effective_step",
    "flax_layout",
    "layout_rules",
    "named_views",
    "norm_growth",
    "param_layouts",
    "path_name",
    "project_radial",
    "scale_by_adamp",
    "scale_by_sgdp",
    "sgdp",
    "sharpness_aware",
    "stacked",
    "subnet_mask",
    "surrogate_gap_gradient",
    "with_projection",
]
