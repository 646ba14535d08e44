"""Prototypes that follow the features as these drift, so that old classes are known without any of their examples."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight._vectors import unit
from reweight.losses import contrastive

__all__ = ["prototype_loss", "prototype_sample_relation", "prototype_scores", "relation_distillation"]

Features = Float[Array, "batch features"]
Prototypes = Float[Array, "classes features"]
Mask = Bool[Array, " batch"] | Num[Array, " batch"]
Axis = Literal["classes", "samples"]


def _check_vectors(function: str, features: Array, prototypes: Array, names: tuple[str, str]) -> None:
    _checks.array(function, names[0], features, ndim=2, kind="float")
    _checks.array(function, names[1], prototypes, shape=(None, jnp.shape(features)[1]), kind="float")


def _keep(function: str, mask: Mask | None, features: Array, name: str = "features") -> Bool[Array, " batch"]:
    size = jnp.shape(features)[:1]
    _checks.mask(function, "mask", mask, jnp.zeros(size), like_name=f"the first axis of {name}")
    return _checks.kept(mask, size)


def _scores(features: Array, prototypes: Array) -> Array:
    dtype = _checks.accumulation_dtype(features, prototypes)
    return jnp.matmul(jnp.asarray(features).astype(dtype), unit(prototypes).astype(dtype).T, precision="highest")


def prototype_scores(features: Features, prototypes: Prototypes) -> Float[Array, "batch classes"]:
    r"""Features against the directions of prototypes, :math:`f_i \cdot w_c / \|w_c\|`: the length of a feature counts.

    With features of length one these are the cosines of `cosine_scores`, whose largest is the predicted class.

    Args:
      features: `[B, D]`, any scale.
      prototypes: `[C, D]`, any scale; one of zeros has score 0.

    Returns:
      Scores `[B, C]`, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit.
    """
    _check_vectors("losses.continual.prototype_scores", features, prototypes, ("features", "prototypes"))
    return _scores(features, prototypes)


def prototype_loss(
    features: Features, prototypes: Prototypes, labels: Int[Array, " batch"], *, mask: Mask | None = None
) -> Float[Array, " batch"]:
    r"""Moves the prototype of the label towards the feature, :math:`1 - \cos(\mathrm{sg}(f_i), w_{y_i})`, per example.

    The features are constant: only prototypes get a gradient, and of them only those of labels in the batch.

    Args:
      features: `[B, D]`, of the encoder, any scale.
      prototypes: `[C, D]`, any scale.
      labels: integer class ids `[B]`.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      Losses `[B]` in [0, 2], float32 or wider; 0 with zero gradient for a label that is not one of the classes.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Asadi et al., *Prototype-Sample Relation Distillation: Towards Replay-Free Continual Learning*, 2023,
      arXiv 2303.14771.
    """
    function = "losses.continual.prototype_loss"
    _check_vectors(function, features, prototypes, ("features", "prototypes"))
    _checks.array(function, "labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    known = (labels >= 0) & (labels < jnp.shape(prototypes)[0]) & _keep(function, mask, features)
    dtype = _checks.accumulation_dtype(features, prototypes)
    constant = unit(jnp.where(known[:, None], jax.lax.stop_gradient(features), 0)).astype(dtype)
    own = unit(prototypes).astype(dtype)[jnp.where(known, labels, 0)]
    return jnp.where(known, 1 - jnp.sum(constant * own, axis=1), 0)


def relation_distillation(
    features: Features,
    old_features: Features,
    prototypes: Prototypes,
    old_prototypes: Prototypes,
    tasks: Int[Array, " classes"],
    *,
    temperature: float = 1.0,
    axis: Axis = "classes",
    mask: Mask | None = None,
) -> Float[Array, " batch"]:
    r"""How samples relate to the prototypes of earlier tasks, kept as features and prototypes move, per example.

    With scores :math:`s = f \cdot w_c / \|w_c\|` of now and :math:`s'` of the end of the last task, both on examples of
    the current one,

    .. math:: \sum_{k} \mathrm{KL}( \mathrm{softmax}(s'_k / T) \| \mathrm{softmax}(s_k / T) )

    where the softmax runs over the classes of task k. The gradient flows into features and prototypes, so that old
    prototypes follow the drift of the features, without examples of their classes; the old ones are constant.

    With `axis="samples"`, as the text of the paper has it, the softmax of each prototype runs over the batch. An
    example's loss is then its share of the divergences times the number of examples, so that the mean over the batch
    is their sum over prototypes, and the batch must not be cut.

    Args:
      features: :math:`f`, of the encoder `[B, D]`, not normalised: their length makes the softmax sharp.
      old_features: of the same examples under the frozen encoder of the last task's end `[B, D]`.
      prototypes: :math:`w`, `[C, D]`.
      old_prototypes: those of the last task's end `[C, D]`.
      tasks: integers `[C]` in 0..C-1: of each prototype the earlier task it belongs to; any other number, such as -1,
        for a class of the current task or a later one, which does not count and is never read.
      temperature: :math:`T`, in (0, inf).
      axis: over what the softmax runs, `"classes"` of a task (the released code) or `"samples"` of the batch.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      Losses `[B]`, float32 or wider; 0 where both models agree, and where there is no earlier task. A task of one class
      adds 0 with `axis="classes"`.

    Raises:
      ValueError: if the shapes do not fit, `tasks` are not integers, `temperature` is out of range or `axis` unknown.

    References:
      Asadi et al., *Prototype-Sample Relation Distillation: Towards Replay-Free Continual Learning*, 2023,
      arXiv 2303.14771.
    """
    function = "losses.continual.relation_distillation"
    _check_vectors(function, features, prototypes, ("features", "prototypes"))
    _checks.array(function, "old_features", old_features, shape=jnp.shape(features), kind="float")
    _checks.array(function, "old_prototypes", old_prototypes, shape=jnp.shape(prototypes), kind="float")
    classes = jnp.shape(prototypes)[0]
    _checks.array(function, "tasks", tasks, shape=(classes,), kind="integer")
    _checks.number(function, "temperature", temperature, low=0, open_low=True, open_high=True)
    _checks.choice(function, "axis", axis, get_args(Axis))
    kept = _keep(function, mask, features)
    past = (tasks >= 0) & (tasks < classes)
    groups = jnp.where(past, tasks, classes)  # those that do not count are a group of their own

    def of_group(segment: Callable[..., Array], values: Array) -> Array:
        return segment(values.T, groups, classes + 1)[groups].T

    def log_probs(vectors: Array, directions: Array) -> Array:
        scores = _scores(jnp.where(kept[:, None], vectors, 0), jnp.where(past[:, None], directions, 0)) / temperature
        if axis == "samples":
            return jax.nn.log_softmax(jnp.where(kept[:, None], scores, jnp.finfo(scores.dtype).min / 2), axis=0)
        scores -= jax.lax.stop_gradient(of_group(jax.ops.segment_max, scores))
        return scores - jnp.log(of_group(jax.ops.segment_sum, jnp.exp(scores)))

    new = log_probs(features, prototypes)
    old = jax.lax.stop_gradient(log_probs(old_features, old_prototypes))
    counted = kept[:, None] & past
    new, old = (jnp.where(counted, x, 0) for x in (new, old))
    p, q = jnp.exp(new), jnp.exp(old)
    # Probabilities sum to one, so that the terms may be p - q - q log(p/q), none of which is negative.
    losses = jnp.sum(jnp.where(counted, p - q - q * (new - old), 0), axis=1)
    return losses * jnp.sum(kept) if axis == "samples" else losses


def prototype_sample_relation(
    projections: Float[Array, "batch *views projection"],
    features: Float[Array, "batch *views features"],
    labels: Int[Array, " batch"],
    prototypes: Prototypes,
    old_features: Float[Array, "batch *views features"] | None = None,
    old_prototypes: Prototypes | None = None,
    tasks: Int[Array, " classes"] | None = None,
    *,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    prototype_weight: float = 2.0,
    distillation_weight: float = 4.0,
    relation_temperature: float = 1.0,
    axis: Axis = "classes",
    mask: Mask | None = None,
) -> Float[Array, " batch"]:
    r"""Learning without replay: `contrastive.supcon` + 2 `prototype_loss` + 4 `relation_distillation`, per example.

    The features are learned by comparing the examples of the task; prototypes learn to name the classes without a say
    in the features, which get their gradient from projections and relations; and the relation to earlier prototypes is
    kept. Through the first term the gradient flows between the examples, so that the batch must not be cut. The paper
    trains prototypes by plain SGD of rate 0.01.

    Args:
      projections: `[B, P]`, or `[B, V, P]` with V views of each example: of the head that is thrown away later.
      features: what goes into that head, `[B, D]` or `[B, V, D]`.
      labels: integer class ids `[B]`.
      prototypes: `[C, D]`.
      old_features: as for `relation_distillation`, in the shape of `features`; None during the first task.
      old_prototypes: as for `relation_distillation`, and given with `old_features`.
      tasks: as for `relation_distillation`, and given with `old_features`.
      temperature: of `contrastive.supcon`.
      base_temperature: of `contrastive.supcon`.
      prototype_weight: in [0, inf).
      distillation_weight: in [0, inf).
      relation_temperature: of `relation_distillation`.
      axis: of `relation_distillation`.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      Losses `[B]`, float32 or wider, each the mean over the views of the example.

    Raises:
      ValueError: if the shapes do not fit, some but not all of what is old is given, the labels or `tasks` are not
        integers, or a hyperparameter is out of range.

    References:
      Asadi et al., *Prototype-Sample Relation Distillation: Towards Replay-Free Continual Learning*, 2023,
      arXiv 2303.14771.
    """
    function = "losses.continual.prototype_sample_relation"
    for name, weight in (("prototype_weight", prototype_weight), ("distillation_weight", distillation_weight)):
        _checks.number(function, name, weight, low=0, open_high=True)
    _checks.number(function, "relation_temperature", relation_temperature, low=0, open_low=True, open_high=True)
    _checks.array(function, "projections", projections, ndim=(2, 3), kind="float")
    leading = jnp.shape(projections)[:-1]
    _checks.array(function, "features", features, shape=(*leading, None), kind="float")
    _checks.array(function, "labels", labels, shape=leading[:1], kind="integer")
    past = {"old_features": old_features, "old_prototypes": old_prototypes, "tasks": tasks}
    if any(value is not None for value in past.values()):
        _checks.require(function, past, tuple(past))
        _checks.array(function, "old_features", old_features, shape=jnp.shape(features), kind="float")
    kept = _keep(function, mask, projections, "projections")
    views = 1 if len(leading) == 1 else leading[1]

    def flat(vectors: Array) -> Array:
        return jnp.asarray(vectors).reshape(-1, jnp.shape(vectors)[-1])

    def of_examples(losses: Array) -> Array:
        return jnp.mean(losses.reshape(-1, views), axis=1)

    rows, there = flat(features), jnp.repeat(kept, views)
    losses = contrastive.supcon(
        projections, labels, temperature=temperature, base_temperature=base_temperature, mask=kept
    )
    named = prototype_loss(rows, prototypes, jnp.repeat(jnp.asarray(labels), views), mask=there)
    losses += prototype_weight * of_examples(named)
    if old_features is not None and old_prototypes is not None and tasks is not None:
        related = relation_distillation(
            rows, flat(old_features), prototypes, old_prototypes, tasks,
            temperature=relation_temperature, axis=axis, mask=there,
        )  # fmt: skip
        losses += distillation_weight * of_examples(related)
    return losses
