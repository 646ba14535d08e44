"""Training the classifiers of an experiment: the same data, model, budget and seeds for every method.

Small runs (embedded data, no mesh) are compiled whole, all seeds side by side on the device. Others go seed by seed
through the loop on the host, with batches from the loader, sharded over the mesh.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.harness import config as configs
from experiments.harness.command import Context
from experiments.harness.seeds import train_seeds
from reweight import _checks, data, models, parallel
from reweight.losses import BatchLoss
from reweight.train import (
    Checkpointer,
    JsonlWriter,
    LossOutput,
    TensorBoardWriter,
    TrainState,
    fit,
    init_state,
    jit_step,
    make_step,
)
from reweight.weights import Weighting

__all__ = ["ClassifierConfig", "Outcome", "Problem", "Training"]

Tree = Any  # a pytree of arrays
LossFn = Callable[[Float[Array, "batch classes"], Int[Array, " batch"]], Float[Array, " batch"]]
MeasureFn = Callable[[Tree, Tree], Mapping[str, Array]]


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(configs.Config):
    """Data, model and budget."""

    data: str = "digits"
    """An embedded set (digits, breast_cancer, wine), or any TFDS name, such as tfds:cifar100."""
    model: str = "mlp"
    """mlp, convnet or resnet18."""
    steps: int = 600
    """Training steps."""
    batch_size: int = 64
    """Examples a step, over all devices."""
    learning_rate: float = 3e-3
    """The learning rate at the start; it falls to 0 along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        data.DataConfig(self.data)
        _checks.choice(configs.FUNCTION, "model", self.model, tuple(models.MODELS))
        self.check_counts("steps", "batch_size")
        self.check_positive("learning_rate")

    @property
    def on_device(self) -> bool:
        """Whether the data lie in the device's memory and all seeds run at once."""
        return self.data in data.EMBEDDED and self.mesh is None

    @property
    def total_steps(self) -> int:
        """The steps of a method as they are counted by the progress bar: seeds side by side count once."""
        return self.steps if self.on_device else self.steps * self.seeds

    def cosine(self, learning_rate: float) -> optax.Schedule:
        """The learning rate by step: from `learning_rate` to 0 along a cosine."""
        return optax.cosine_decay_schedule(learning_rate, self.steps)


class Training(NamedTuple):
    """What a method is made of.

    Attributes:
      optimizer: an optax transformation.
      loss: `(logits, labels) -> losses`; or a `BatchLoss`, which gets `logits` and the arrays of the batch, among them
        `labels` and the examples' `indices`.
      weighting: how the losses are weighted; None for equal weights.
      measure: `(params before, params after) -> named scalars`, measured at every step; None for nothing.
    """

    optimizer: optax.GradientTransformation
    loss: LossFn | BatchLoss
    weighting: Weighting | None = None
    measure: MeasureFn | None = None

    @property
    def batch_loss(self) -> BatchLoss | None:
        """The loss, if it is one with a statistic."""
        return self.loss if isinstance(self.loss, BatchLoss) else None


class Outcome(NamedTuple):
    """What training a method gave.

    Attributes:
      recalls: the share of each class's test examples that are classified rightly `[seeds, classes]`.
      metrics: those of the steps `[seeds, records]`.
      steps: the steps of the records.
    """

    recalls: np.ndarray
    metrics: dict[str, np.ndarray]
    steps: np.ndarray


class Problem:
    """Data and model of an experiment, opened once for all methods.

    Args:
      config: data, model and budget.
      context: where to write and whom to tell of progress.
      variant: fields of `data.DataConfig`; the seed of the run draws the variant.
      options: options of the model, as `models.build` takes them; `norm` is left to models that have the choice.
      records: about how many records of the step metrics are kept.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        context: Context,
        *,
        variant: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        records: int = 50,
    ) -> None:
        self.config, self.context = config, context
        self.every = max(1, config.steps // records)
        self._variant = dict(variant or {})
        self._options = dict(options or {}) if config.model != "resnet18" else {}
        self.info = data.stream(self._data(0), "train").info
        if not self.info.num_classes:
            _checks.fail(configs.FUNCTION, "data", repr(config.data), "a set with classes")
        self._apply = models.functional(nnx.eval_shape(lambda: self._build(jax.random.key(0)))).apply

    def _data(self, seed: int) -> data.DataConfig:
        return data.DataConfig(self.config.data, seed=seed, **self._variant)

    def _build(self, key: PRNGKeyArray) -> Any:
        return models.build(self.config.model, self.info.input_shape, self.info.num_classes, key=key, **self._options)

    @functools.cached_property
    def initial(self) -> tuple[Tree, Tree]:
        """Parameters and extra state from which the seeds start, the same for all methods, `[seeds, ...]`."""

        def one(seed: Int[Array, ""]) -> tuple[Tree, Tree]:
            model = models.functional(self._build(_keys(seed).model))
            return model.params, model.extra

        return jax.jit(jax.vmap(one))(self.config.seed_numbers)

    def _hits(self, params: Tree, extra: Tree, batch: Mapping[str, Array]) -> Float[Array, "2 classes"]:
        """Of each class, how many examples of a batch are classified rightly and how many there are."""
        logits, _ = self._apply(params, extra, batch["inputs"])
        labels, keep = batch["labels"], batch.get("mask")
        ones = jnp.ones(labels.shape) if keep is None else jnp.asarray(keep, jnp.float32)
        right = ones * (jnp.argmax(logits, axis=-1) == labels)
        return jnp.stack([jax.ops.segment_sum(x, labels, self.info.num_classes) for x in (right, ones)])

    @functools.cached_property
    def _compiled_hits(self) -> Callable[..., Array]:
        """`_hits`, for all seeds at once, or for batches on the mesh with the counts on every host."""
        if self.config.on_device:
            return jax.jit(jax.vmap(self._hits, (0, 0, None)))
        return jax.jit(self._hits, out_shardings=parallel.replicated(self._mesh))

    @functools.cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return parallel.make_mesh(self.config.mesh)

    def _step(self, training: Training) -> Any:
        def loss_fn(params: Tree, extra: Tree, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
            mask = batch.get("mask")
            logits, extra = self._apply(params, extra, batch["inputs"], train=True, key=key, mask=mask)
            losses = None if isinstance(training.loss, BatchLoss) else training.loss(logits, batch["labels"])
            return LossOutput(losses, {"logits": logits}, extra)

        step = make_step(loss_fn, training.optimizer, loss=training.batch_loss, weighting=training.weighting)
        if training.measure is None:
            return step
        measure = training.measure

        def measured(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
            new, metrics = step(state, batch)
            return new, metrics | dict(measure(state.params, new.params))

        return measured

    def train(self, method: str, training: Training) -> Outcome:
        """Trains a method over all seeds, or goes on where the run was interrupted."""
        if self.config.on_device:
            return self._at_once(method, training)
        outcomes = [self._alone(method, training, seed) for seed in self.config.seed_numbers.tolist()]
        metrics = {name: np.stack([o.metrics[name] for o in outcomes]) for name in outcomes[0].metrics}
        return Outcome(np.stack([o.recalls for o in outcomes]), metrics, outcomes[0].steps)

    @functools.cached_property
    def _arrays(self) -> dict[str, Array]:
        """The training sets of all seeds `[seeds, n, ...]`."""
        sets = [data.load(self._data(seed), "train") for seed in self.config.seed_numbers.tolist()]
        return {name: jnp.stack([s[name] for s in sets]) for name in ("inputs", "labels")}

    @functools.cached_property
    def _test(self) -> dict[str, Array]:
        test = data.load(self._data(0), "test")
        return {name: jnp.asarray(test[name]) for name in ("inputs", "labels")}

    def _at_once(self, method: str, training: Training) -> Outcome:
        config = self.config
        keys = jax.vmap(_keys)(jnp.asarray(config.seed_numbers))
        start = functools.partial(_state, training)
        state = jax.jit(jax.vmap(start))(*self.initial, keys.run)
        state, metrics = train_seeds(
            method,
            self._step(training),
            state,
            self._arrays,
            keys.order,
            batch_size=config.batch_size,
            num_steps=config.steps,
            context=self.context,
            stacked_arrays=True,
            every=self.every,
        )
        right, count = np.moveaxis(np.asarray(self._compiled_hits(state.params, state.extra, self._test)), 1, 0)
        kept = _recorded(config.steps, self.every)
        return Outcome(right / count, {name: x[:, kept - 1] for name, x in metrics.items()}, kept)

    def _alone(self, method: str, training: Training, seed: int) -> Outcome:
        config, context = self.config, self.context
        mesh = self._mesh
        params, extra = jax.tree.map(lambda x: x[seed - config.first_seed], self.initial)
        state = _state(training, params, extra, _keys(seed).run)
        name = f"{method}-{seed}"
        path = context.path
        if path is None:
            _checks.fail(configs.FUNCTION, "context", "without a folder", "a folder, for runs outside the device")
        source = data.stream(self._data(seed), "train")
        rows = parallel.process_slice(config.batch_size, mesh)
        batches = data.make_loader(source, batch_size=config.batch_size, seed=seed, rows=rows)
        jsonl = path / "metrics" / f"{name}.jsonl"
        step = jit_step(self._step(training), mesh=mesh)
        with Checkpointer(path / "checkpoints" / name, keep_last=2) as checkpointer:
            done = fit(
                step,
                state,
                iter(batches),
                num_steps=config.steps,
                mesh=mesh,
                writers=[JsonlWriter(jsonl), TensorBoardWriter(path / "tensorboard" / name)],
                log_every=self.every,
                checkpointer=checkpointer,
                checkpoint_every=-(-config.steps // 4),
            )
        if done.preempted:
            raise SystemExit(f"interrupted; go on with --resume {path}")
        context.tick(name, config.steps)
        total = np.zeros((2, self.info.num_classes))
        test = data.stream(self._data(0), "test")
        size = config.batch_size
        for batch in data.make_loader(test, batch_size=size, epochs=1, shuffle=False, remainder="pad", rows=rows):
            hits = self._compiled_hits(done.state.params, done.state.extra, parallel.shard_batch(batch, mesh))
            total += np.asarray(hits)
        right, count = total
        records = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
        metrics = {
            key.removeprefix("train/"): np.array([record[key] for record in records])
            for key in records[0]
            if key.startswith("train/")
        }
        return Outcome(right / count, metrics, np.array([record["step"] for record in records]))


def _state(training: Training, params: Tree, extra: Tree, key: PRNGKeyArray) -> TrainState:
    return init_state(params, extra, training.optimizer, training.weighting, key, loss=training.batch_loss)


class _Keys(NamedTuple):
    """A seed's keys: of the initial parameters, of the run, and of the order of the data."""

    model: PRNGKeyArray
    run: PRNGKeyArray
    order: PRNGKeyArray


def _keys(seed: Int[Array, ""] | int) -> _Keys:
    return _Keys(*jax.random.split(jax.random.key(seed), 3))


def _recorded(steps: int, every: int) -> np.ndarray:
    """The steps of which a record is kept: every so many, and the last."""
    return np.array(sorted({*range(every, steps + 1, every), steps}))
