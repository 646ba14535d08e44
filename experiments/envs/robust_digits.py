"""Handwritten digits under attack: a half to learn from and a half to be tested on, a small network, PGD.

A seed draws the halves, the initial parameters, the order of the batches and the random starts of attacks. An attack
changes every pixel, whose range is one, by `eps` at most; whether it leaves the range does not matter.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from experiments import harness
from reweight import _checks, data
from reweight.data import variants
from reweight.losses import BatchLoss, adversarial, classification
from reweight.train import LossOutput, TrainState, init_state, make_step
from reweight.weights import Weighting

__all__ = [
    "CLASSES",
    "AttackConfig",
    "Bench",
    "Training",
    "attack_options",
    "bench",
    "cross_entropy",
    "features",
    "halves",
    "initial",
    "logits",
]

CLASSES = 10
PIXELS = 64
Tree = Any  # a pytree of arrays
Batch = Mapping[str, Array]
LossFn = Callable[[Tree, Batch, PRNGKeyArray], LossOutput]


@dataclasses.dataclass(frozen=True)
class AttackConfig(harness.Config):
    """Network, budget and attack."""

    seeds: int = 8
    steps: int = 300
    """Training steps."""
    batch_size: int = 64
    """Examples a step."""
    width: int = 64
    """Units of the hidden layer."""
    learning_rate: float = 5e-3
    """The learning rate at the start; it falls to 0 along a cosine."""
    eps: float = 0.1
    """The largest change of a pixel, whose range is one."""
    attack_steps: int = 5
    """Steps of an attack in training, each a quarter of `eps`; in the test there are 20."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "batch_size", "width", "attack_steps")
        for name in ("learning_rate", "eps"):
            _checks.number("experiments.Config", name, getattr(self, name), low=0, open_high=True)


def halves(seed: int, ratio: float = 1.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training and test examples; in training, class 0 has `ratio` times the examples of the last class.

    The seed also draws which digit is which class, so that no digit is rare in every run.
    """
    parts = [data.load(data.DataConfig("digits"), split) for split in ("train", "test")]
    inputs, digits = (np.concatenate([part[name] for part in parts]) for name in ("inputs", "labels"))
    inputs = (inputs - inputs.min()) / (inputs.max() - inputs.min())
    rng = np.random.default_rng(seed)
    labels = rng.permutation(CLASSES)[digits]
    members = [rng.permutation(np.flatnonzero(labels == c)) for c in range(CLASSES)]
    half = min(map(len, members)) // 2
    sizes = variants.long_tail_counts(np.full(CLASSES, half), ratio)
    train = np.concatenate([rows[:size] for rows, size in zip(members, sizes, strict=True)])
    test = np.concatenate([rows[half:] for rows in members])
    flat = inputs.reshape(len(inputs), -1).astype(np.float32)
    ours, others = ({"inputs": flat[rows], "labels": labels[rows].astype(np.int32)} for rows in (train, test))
    return ours, others


def features(params: Tree, inputs: Float[Array, "batch pixels"]) -> Float[Array, "batch width"]:
    """What the last layer sees."""
    return jax.nn.relu(inputs @ params["hidden"] + params["bias"])


def logits(params: Tree, inputs: Float[Array, "batch pixels"]) -> Float[Array, "batch classes"]:
    """Those of the network."""
    return features(params, inputs) @ params["head"]


def initial(width: int, key: PRNGKeyArray) -> Tree:
    """Parameters to start from: a hidden layer of ReLUs, and a last layer that knows nothing."""
    draw = jax.random.normal(key, (PIXELS, width)) * np.sqrt(2 / PIXELS)
    return {"hidden": draw, "bias": jnp.zeros(width), "head": jnp.zeros((width, CLASSES))}


def attack_options(config: AttackConfig, steps: int | None = None) -> dict[str, Any]:
    """Those of a PGD attack, in training or with so many steps. It starts close to the input."""
    steps = config.attack_steps if steps is None else steps
    return {"eps": config.eps, "step_size": config.eps / 4, "steps": steps, "init": "normal", "clip": None}


class Training(NamedTuple):
    """How a method learns.

    Attributes:
      loss_fn: `(params, batch, key) -> LossOutput`.
      loss: a `BatchLoss` of the signals that `loss_fn` gives, if it gives no losses.
      weighting: of the losses; None for equal weights.
      learning_rate: a schedule; None for the cosine.
      steps: None for those of the config.
      start: stacked parameters to start from; None for fresh ones.
      make_step: how a step is made of the optimizer, for a method that is no gradient of weighted losses.
    """

    loss_fn: LossFn | None = None
    loss: BatchLoss | None = None
    weighting: Weighting | None = None
    learning_rate: optax.Schedule | None = None
    steps: int | None = None
    start: Tree = None
    make_step: Callable[[optax.GradientTransformation], Any] | None = None


class Bench(NamedTuple):
    """Data of all seeds, and where a run writes."""

    config: AttackConfig
    context: harness.Context
    train: dict[str, Array]
    test: dict[str, Array]
    keys: PRNGKeyArray

    def fit(self, name: str, training: Training) -> Tree:
        """The parameters that a method learns, stacked over the seeds."""
        config = self.config
        steps = config.steps if training.steps is None else training.steps
        rate = training.learning_rate or optax.cosine_decay_schedule(config.learning_rate, steps)
        optimizer = optax.adam(rate)
        if training.make_step is not None:
            step = training.make_step(optimizer)
        else:
            loss_fn = training.loss_fn
            assert loss_fn is not None
            step = make_step(
                lambda params, extra, batch, key: loss_fn(params, batch, key),
                optimizer,
                loss=training.loss,
                weighting=training.weighting,
            )

        def begin(key: PRNGKeyArray, params: Tree) -> TrainState:
            params = initial(config.width, key) if params is None else params
            return init_state(params, None, optimizer, training.weighting, key, loss=training.loss)

        state, _ = harness.train_seeds(
            name,
            step,
            jax.jit(jax.vmap(begin))(self.keys, training.start),
            self.train,
            self.keys,
            batch_size=config.batch_size,
            num_steps=steps,
            context=self.context,
            stacked_arrays=True,
            mesh=config.mesh,
        )
        return state.params

    def recalls(self, params: Tree, side: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """The share of each class that is classified rightly `[seeds, classes]`, clean and under PGD-20."""
        arrays = self.test if side == "test" else self.train
        clean, robust = _recalls(self.keys, params, arrays, tuple(sorted(attack_options(self.config, 20).items())))
        return np.asarray(clean), np.asarray(robust)


@functools.partial(jax.jit, static_argnums=3)
def _recalls(keys: PRNGKeyArray, params: Tree, arrays: Batch, options: tuple[tuple[str, Any], ...]) -> Any:
    def one(key: PRNGKeyArray, params: Tree, arrays: Batch) -> tuple[Array, Array]:
        inputs, labels = arrays["inputs"], arrays["labels"]
        predict = functools.partial(logits, params)
        attacked = adversarial.attack_classifier(key, predict, inputs, labels, **dict(options)).inputs
        member = jax.nn.one_hot(labels, CLASSES)

        def recall(x: Array) -> Array:
            return (predict(x).argmax(-1) == labels).astype(x.dtype) @ member / member.sum(0)

        return recall(inputs), recall(attacked)

    return jax.vmap(one)(keys, params, arrays)


def bench(config: AttackConfig, context: harness.Context, ratio: float = 1.0) -> Bench:
    """The problem of a run."""
    splits = [halves(seed, ratio) for seed in config.seed_numbers.tolist()]
    train, test = ({name: jnp.stack([x[name] for x in side]) for name in side[0]} for side in zip(*splits, strict=True))
    return Bench(config, context, train, test, jax.vmap(jax.random.key)(jnp.asarray(config.seed_numbers)))


def cross_entropy(params: Tree, inputs: Array, labels: Array) -> Float[Array, " batch"]:
    """That of the network."""
    return classification.cross_entropy(logits(params, inputs), labels)
