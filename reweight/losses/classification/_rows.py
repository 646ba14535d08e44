"""What losses of logits and labels share: checks, classes that count, labels that exist."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks

Logits = Float[Array, "*batch classes"]
Labels = Int[Array, "*batch"]
ClassMask = Bool[Array, "..."] | Num[Array, "..."]


def allowed(function: str, logits: Logits, class_mask: ClassMask | None = None) -> Bool[Array, "*batch classes"]:
    """The classes that count, of the shape of the logits, which are checked."""
    _checks.array(function, "logits", logits, kind="float")
    if jnp.ndim(logits) < 1:
        _checks.fail(function, "logits", "a scalar", "an array whose last axis is the classes")
    _checks.mask(function, "class_mask", class_mask, logits, like_name="logits")
    return _checks.kept(class_mask, jnp.shape(logits))


def centred(logits: Logits, counting: Bool[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Logits in float32 at least, less the largest of their row; 0 where not allowed.

    The loss does not change, and its small values keep their digits when the logits are large.
    """
    logits = jnp.where(counting, logits, 0).astype(_checks.accumulation_dtype(logits))
    top = jnp.max(jnp.where(counting, logits, -jnp.inf), axis=-1, keepdims=True)
    return logits - jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))


class Rows(NamedTuple):
    """Scores in float32 at least, labels among the classes, and where the label was one of them."""

    scores: Float[Array, "*batch classes"]
    labels: Int[Array, "*batch"]
    known: Bool[Array, "*batch"]

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.scores.shape[-1]

    @property
    def own(self) -> Bool[Array, "*batch classes"]:
        """Where the class is that of the label."""
        return jnp.arange(self.classes) == self.labels[..., None]

    def of_label(self, values: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
        """The entry of the label's class."""
        return jnp.take_along_axis(values, self.labels[..., None], axis=-1)[..., 0]

    def ahead(self, margin: float | Float[Array, ""] = 0.0) -> Float[Array, "*batch classes"]:
        """How far each class is ahead of the label's: score differences, to which a margin is added for the others."""
        return self.scores - self.of_label(self.scores)[..., None] + jnp.where(self.own, 0, margin)

    def negative_log_probs(self, temperature: float | Float[Array, ""] = 1.0) -> Float[Array, "*batch"]:
        """Cross-entropy of the scores divided by a temperature, in which probabilities near one keep their digits."""
        ahead = self.ahead() / temperature
        # A class alone has no others; half of the least number is far enough, and may still be added to.
        others = jnp.where(self.own, jnp.finfo(ahead.dtype).min / 2, ahead)
        return jax.nn.softplus(jax.nn.logsumexp(others, axis=-1))

    def losses(self, values: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The losses, 0 with zero gradient where the label is no class."""
        return jnp.where(self.known, values, 0)


def _given(function: str, logits: Logits, labels: Labels) -> Rows:
    """Checked logits as they are, and integer labels."""
    allowed(function, logits)
    _checks.array(function, "labels", labels, shape=jnp.shape(logits)[:-1], kind="integer")
    if jnp.shape(logits)[-1] == 0:
        _checks.fail(function, "logits", f"of shape {jnp.shape(logits)}", "at least one class")
    labels = jnp.asarray(labels)
    known = (labels >= 0) & (labels < jnp.shape(logits)[-1])
    return Rows(jnp.asarray(logits).astype(_checks.accumulation_dtype(logits)), jnp.where(known, labels, 0), known)


def rows(function: str, logits: Logits, labels: Labels, *, centre: bool = True) -> Rows:
    """Checked logits and integer labels; the scores less the largest of their row, unless a shift changes the loss.

    The logits of an example whose label is no class are not read.
    """
    given = _given(function, logits, labels)
    counting = jnp.broadcast_to(given.known[..., None], given.scores.shape)
    return given._replace(scores=centred(given.scores, counting) if centre else jnp.where(counting, given.scores, 0))


def masked(function: str, logits: Logits, labels: Labels, mask: ClassMask | None) -> tuple[Rows, Bool[Array, "*batch"]]:
    """Rows that are not centred, with zeros for the logits where masked, and the mask as booleans.

    Those whose label is no class are rows like the others: their losses may need no label.
    """
    given = _given(function, logits, labels)
    _checks.mask(function, "mask", mask, labels, like_name="labels")
    shape = given.labels.shape
    kept = _checks.kept(mask, shape)
    return given._replace(scores=jnp.where(kept[..., None], given.scores, 0)), kept
