"""What a function tells the suite about itself: how to draw its inputs, which axis is the batch, which one the mask.

A case is data. All arguments are passed by name. Arrays are drawn in NumPy as float64 (the suite casts them), integers
or booleans; every array has the batch as its leading axis unless `fixed` names it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

Arrays = dict[str, np.ndarray]
Draw = Callable[[np.random.Generator, int], Arrays]
Returns = Literal["example", "batch", "parts", "sums"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A public function of arrays.

    Attributes:
      function: the public function; names the case.
      inputs: draws its arrays for a batch of n. A mask that is not drawn is drawn by the suite, as `[n]` booleans.
      returns: `"example"` if every array that comes back has the batch as its leading axis, `"batch"` if none has,
        `"parts"` for a `reduce.Parts` that adds up over any split of the batch, `"sums"` for any other tree of sums.
      hyper: keyword hyperparameters.
      variant: what tells two cases of one function apart.
      call: how the suite calls the function, where plain keywords do not do.
      fixed: arrays that do not have the batch as leading axis.
      mask: the argument that masks; what it hides are the entries of all arrays that are not `fixed` (or `hidden`).
      hidden: the arrays whose entries the mask hides, if not all.
      differentiable: arguments with a gradient. Every float array is in one of this, `stopped` and `constant`.
      stopped: arguments through which the function documents that no gradient flows.
      constant: float arguments that nobody differentiates (class counts, a floor).
      couples: an example's value depends on the other examples. False promises that it does not, for `"example"`.
      surrogate: the gradient is documented to be another than that of the values; a test must say which.
      ordered: the order of the examples means something, so that no permutation is tried.
      extremes: the largest and smallest values of an argument, where they are not ±1e4; empty: leave it as drawn.
      empty: what comes back when all is masked: a number, or a function of the arrays.
      weights: the result is weights: non-negative and 0 where masked.
      mean: their mean over the unmasked examples; None where the method has another scale.
      reference: the formula once more, in NumPy: `reference(**arrays, **hyper)`, from float64 arrays.
      invariants: statements about the method, each a function of the `Probe` that asserts.
      bad: values that must be refused with a `ValueError` naming the argument.
      defaults: the numbers that the function takes where none are given, as its paper has them.
      free: hyperparameters that take any value, or arrays of any shape, each with the reason.
      static: float hyperparameters that cannot be traced, each with the reason.
      blames: other functions whose names its errors may carry: those that it is made of.
      bf16: relative difference allowed between bfloat16 inputs and the same numbers in float32; None where a result
        keeps the dtype of its input.
      tolerance: relative difference allowed between float32 and float64.
    """

    function: Callable[..., Any]
    inputs: Draw
    returns: Returns = "example"
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variant: str = ""
    call: Callable[..., Any] | None = None
    fixed: tuple[str, ...] = ()
    mask: str | None = None
    hidden: tuple[str, ...] | None = None
    differentiable: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    couples: bool = False
    surrogate: bool = False
    ordered: bool = False
    extremes: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    empty: float | Callable[..., Any] = 0.0
    weights: bool = False
    mean: float | None = 1.0
    reference: Callable[..., Any] | None = None
    invariants: tuple[Callable[..., None], ...] = ()
    bad: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    free: Mapping[str, str] = dataclasses.field(default_factory=dict)
    static: Mapping[str, str] = dataclasses.field(default_factory=dict)
    blames: tuple[str, ...] = ()
    bf16: float | None = 1e-3
    tolerance: float = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatefulCase(Case):
    """A function that makes something with a state: `init()`, and `update(state, **arrays) -> (values, state)`.

    It is run over a few steps. `reference(steps, **hyper)` gets a list of the arrays of each step and gives the list of
    values. Checked without being asked for: zeros and an unchanged state for a batch that is masked altogether, a state
    that keeps its structure.
    """

    mask: str | None = "mask"
    steps: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightingCase(StatefulCase):
    """A function that makes a `Weighting`: `inputs` draws `losses` and the signals.

    What every weighting promises is checked without being asked for: no gradient, and the declared scope.
    """

    weights: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLossCase(StatefulCase):
    """A function that makes a `BatchLoss`: `inputs` draws the signals, of which it says whether a gradient flows.

    What every such loss promises is checked without being asked for: given the statistics of a batch, its pieces have
    the losses and gradients of the batch.

    Its gradient is held to its values given the statistics; with `surrogate` an example's loss also carries gradient of
    other examples' losses.
    """

    couples: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformCase:
    """A function that makes an `optax.GradientTransformation`.

    Attributes:
      function: the public function; names the case.
      hyper: its hyperparameters.
      variant: what tells two cases of one function apart.
      call: how the suite makes the transform from the hyperparameters, where plain keywords do not do.
      needs_params: `update` needs the parameters and says so.
      couples: the step of a parameter depends on the other parameters.
      layered: each layer of a stack is treated as a tensor of its own, where the layout says that it is a stack.
      bad: as for `Case`.
      defaults: as for `Case`.
      free: as for `Case`.
      injectable: numeric hyperparameters that may be injected, traced.
      reference: `reference(params, grads, **hyper) -> params` over the drawn gradients, in NumPy.
      invariants: as for `Case`.
    """

    function: Callable[..., Any]
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variant: str = ""
    call: Callable[..., Any] | None = None
    needs_params: bool = True
    couples: bool = False
    layered: bool = False
    bad: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    free: Mapping[str, str] = dataclasses.field(default_factory=dict)
    injectable: tuple[str, ...] = ()
    reference: Callable[..., Any] | None = None
    invariants: tuple[Callable[..., None], ...] = ()
