"""Which axes of a parameter form a row, which are copies, and which parameters have rows at all.

A transform that treats a kernel channel by channel must know where the channels are. torch stores the output channel
first; flax stores it last, an embedding has a row a token, attention kernels spread their channels over two axes, and a
scanned or vmapped stack puts an axis of copies in front. A *layout rule* is a function `(path, leaf) -> ParamLayout`
that settles this for each leaf of a parameter tree; `default_layout` knows flax (linen and nnx), `layout_rules`
overrides it by path, and `stacked` adds axes of copies:

    layout = layout_rules([
        ("decoder/layers/", stacked(axes=1)),            # kernels [in, layer, out]
        ("upsample/kernel", ParamLayout((0, 1, 3))),     # a ConvTranspose with torch's rows
        ("router", ParamLayout(project=False)),
    ])

No transform reshapes a parameter to a matrix: sums run over `reduce_axes` with the dimensions kept, so that a sharded
parameter stays sharded.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from reweight import _checks

__all__ = [
    "LayoutRule",
    "ParamLayout",
    "default_layout",
    "flax_layout",
    "layout_rules",
    "param_layouts",
    "path_name",
    "stacked",
]

KeyPath = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class ParamLayout:
    """How a parameter divides into rows: every axis is a row axis, a batch axis, or else a channel axis.

    Attributes:
      reduce_axes: the axes that make up a row, for a kernel those that it contracts with its input. Each index of the
        channel axes has a row of its own.
      batch_axes: axes of copies (layers of a scanned stack, experts, seeds): each index is a parameter of its own.
      project: whether the parameter has rows. Biases, norm scales and other vectors have none.
    """

    reduce_axes: tuple[int, ...] = ()
    batch_axes: tuple[int, ...] = ()
    project: bool = True

    def channel_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes that are neither row nor batch axes, in ascending order."""
        return tuple(axis for axis in range(ndim) if axis not in self.reduce_axes + self.batch_axes)

    def row_size(self, shape: Sequence[int]) -> int:
        """The number of entries of a row."""
        return math.prod(shape[axis] for axis in self.reduce_axes)

    def resolve(self, function: str, argument: str, ndim: int) -> "ParamLayout":
        """The layout with its axes counted from the front, checked against a rank.

        Args:
          function: the caller, for the error message.
          argument: the parameter's name, for the error message.
          ndim: the rank of the parameter.

        Returns:
          An equal layout without negative axes.

        Raises:
          ValueError: if an axis is out of range or named twice, or a projected parameter has no row axis.
        """
        axes = self.reduce_axes + self.batch_axes
        in_range = all(-ndim <= axis < ndim for axis in axes)
        if not in_range or len({axis % ndim for axis in axes}) != len(axes):
            allowed = f"distinct row and batch axes of a parameter of rank {ndim}"
            _checks.fail(function, argument, f"laid out as {self}", allowed)
        if self.project and not self.reduce_axes:
            _checks.fail(function, argument, f"laid out as {self}", "at least one row axis, or project=False")
        return ParamLayout(
            tuple(sorted(axis % ndim for axis in self.reduce_axes)),
            tuple(sorted(axis % ndim for axis in self.batch_axes)),
            self.project,
        )


LayoutRule = Callable[[KeyPath, Any], ParamLayout]


def _keys(path: KeyPath) -> tuple[str, ...]:
    """The names along a path; the field in which nnx variables and linen's metadata boxes hold the array is no name."""
    if len(path) > 1 and isinstance(path[-1], GetAttrKey) and path[-1].name in ("value", "raw_value"):
        path = path[:-1]
    names: list[str] = []
    for key in path:
        match key:
            case DictKey() | FlattenedIndexKey():
                parts = key.key if isinstance(key.key, tuple) else (key.key,)
            case GetAttrKey():
                parts = (key.name,)
            case SequenceKey():
                parts = (key.idx,)
            case _:
                parts = (key,)
        names.extend(name for part in parts for name in str(part).split("/"))
    return tuple(names)


def path_name(path: KeyPath) -> str:
    """The path of a leaf as one string, `"encoder/layers/0/kernel"`: what the patterns of `layout_rules` search.

    Args:
      path: a key path of `jax.tree_util.tree_flatten_with_path`: any mix of dict keys, attributes and indices.

    Returns:
      The names joined by `/`, without the `.value` that ends the paths of nnx variables and of linen's metadata boxes.
    """
    return "/".join(_keys(path))


_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_VECTORS = frozenset({"beta", "bias", "gamma", "mean", "scale", "slope", "var"})
_TABLES = frozenset({"embed", "embedding", "embeddings", "wpe", "wte"})
# Projections of flax's attention to [heads, head_dim]: the input is the one contracted axis.
_TO_HEADS = frozenset({"k", "key", "kv", "q", "qkv", "query", "v", "value"})


def _words(key: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(key)]


def _is_vector(keys: tuple[str, ...]) -> bool:
    words = _words(keys[-1]) if keys else []
    return bool(words) and words[-1] in _VECTORS


def _kernel_name(keys: tuple[str, ...]) -> str:
    """What a kernel belongs to: `query` of `attention/query/kernel`, `q_proj/w`, `query_kernel`."""
    own = [word for word in _words(keys[-1]) if word not in ("kernel", "w", "weight", "weights")] if keys else []
    parent = _words(keys[-2]) if len(keys) > 1 else []
    words = [word for word in (own or parent) if word not in ("proj", "projection")]
    return words[-1] if words else ""


def _layout(path: KeyPath, leaf: Any, batch: int) -> ParamLayout:
    """The flax layout of a leaf whose first `batch` axes are copies."""
    keys, ndim = _keys(path), jnp.ndim(leaf)
    copies = tuple(range(min(batch, ndim)))
    if ndim - batch < 2 or _is_vector(keys) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return ParamLayout((), copies, project=False)
    if keys and not _TABLES.isdisjoint(_words(keys[-1])[-1:]):
        return ParamLayout((ndim - 1,), copies)
    name = _kernel_name(keys)
    if name in _TO_HEADS and ndim - batch > 2:
        # A kernel for one of query, key, value has rank 3, so that axes beyond that are copies too.
        first = batch if name in ("qkv", "kv") else ndim - 3
        return ParamLayout((first,), tuple(range(first)))
    return ParamLayout(tuple(range(batch, ndim - 1)), copies)


def flax_layout(path: KeyPath, leaf: Any) -> ParamLayout:
    """The layout of one flax parameter that is not stacked, by the last names of its path and by its rank.

    | parameter | shape | row | channels |
    |---|---|---|---|
    | `kernel` of Linear, Dense; LoRA factors | `[in, out]` | `in` | `out` |
    | `kernel` of Conv, ConvTranspose | `[*window, in, out]` | all but the last | `out` |
    | `embedding` | `[vocab, dim]` | `dim` | tokens |
    | `kernel` of query, key, value | `[embed, heads, head_dim]` | `embed` | heads and their dimensions |
    | `kernel` of attention's output | `[heads, head_dim, embed]` | all but the last | `embed` |
    | `bias`, `scale`, …, of any rank (`[heads, head_dim]` too) | | not projected | |
    | what has rank 0 or 1 or is not floating | | not projected | |

    Any other name of rank 2 or more is taken for a kernel that contracts all axes but the last. torch stores the
    kernel of a transposed convolution input first, so that its rows run over the output: for its numbers give
    `ParamLayout((0, 1, 3))` to a ConvTranspose kernel `[h, w, in, out]`. A LinearGeneral or Einsum kernel with several
    output axes needs a rule of its own, unless it is one of attention's.

    Args:
      path: key path of the leaf.
      leaf: an array or anything with shape and dtype.

    Returns:
      The layout.
    """
    return _layout(path, leaf, 0)


_INDEX = re.compile(r"(?:[a-z]{1,5}_?)?\d+")
_LIFTED = re.compile(r"(?:(Scan)|(Vmap))[A-Z]")  # linen names the modules that nn.scan and nn.vmap make like this


def _stack_kind(key: str, following: str) -> str | None:
    if lifted := _LIFTED.match(key):
        return "depth" if lifted.group(1) else "width"
    words = _words(key)
    # A list of modules has an index, here or in the next name, where a stack of them has none.
    if not words or words[-1].isdigit() or _INDEX.fullmatch(following):
        return None
    if key in ("layers", "blocks") or not {"scan", "scanned", "stack", "stacked"}.isdisjoint(words):
        return "depth"
    return None if {"vmap", "vmapped", "expert", "experts"}.isdisjoint(words) else "width"


def default_layout(path: KeyPath, leaf: Any) -> ParamLayout:
    """The layout of a flax parameter (linen or nnx), stacks recognised by name: `flax_layout` behind axes of copies.

    A name on the path that says *stack* puts one batch axis in front:

    - of layers: `scan`, `stack` (and their participles) as a word of a name, linen's `Scan…` modules, or a name
      `layers` or `blocks`;
    - of copies side by side: `expert`, `experts`, `vmap` as a word of a name, or linen's `Vmap…` modules.

    One of each kind makes two batch axes. No stack is seen where an index belongs to the name or follows it
    (`layers/0/kernel`, `blocks/block_1/kernel`, `expert_3/kernel`), and none in a leaf whose rank leaves no room for
    it: a kernel or an embedding under such a name keeps at least two axes of its own.

    Names are a convention and not a proof. `param_layouts` shows what was made of a tree; `stacked` and
    `layout_rules` say it explicitly, which a stack under other names, or along another axis, needs.

    Args:
      path: key path of the leaf.
      leaf: an array or anything with shape and dtype.

    Returns:
      The layout.
    """
    keys = _keys(path)
    kinds = {_stack_kind(key, following) for key, following in zip(keys, (*keys, "")[1:], strict=True)}
    room = jnp.ndim(leaf) - (1 if _is_vector(keys) else 2)
    return _layout(path, leaf, max(0, min(len(kinds - {None}), room)))


def stacked(rule: LayoutRule = flax_layout, *, axes: int | tuple[int, ...] = 0) -> LayoutRule:
    """A rule for stacks: `rule` decides for one copy, and `axes` are axes of copies.

    Args:
      rule: the rule for a leaf without these axes.
      axes: one axis or several. The default is one stack in front, `(0, 1)` is a stack of stacks, and `1` the kernels
        `[in, layer, out]` of `nn.scan` along axis 1.

    Returns:
      A layout rule. A leaf without so many axes is not stacked: `rule` alone decides.
    """
    wanted = (axes,) if isinstance(axes, int) else tuple(axes)

    def stacked_rule(path: KeyPath, leaf: Any) -> ParamLayout:
        ndim = jnp.ndim(leaf)
        if any(not -ndim <= axis < ndim for axis in wanted):
            return rule(path, leaf)
        copies = {axis % ndim for axis in wanted}
        rest = [axis for axis in range(ndim) if axis not in copies]
        inner = rule(path, jax.ShapeDtypeStruct(tuple(leaf.shape[axis] for axis in rest), leaf.dtype))
        inner = inner.resolve("optim.stacked", path_name(path), len(rest))
        return ParamLayout(
            tuple(rest[axis] for axis in inner.reduce_axes),
            tuple(sorted(copies.union(rest[axis] for axis in inner.batch_axes))),
            inner.project,
        )

    return stacked_rule


def layout_rules(
    rules: Sequence[tuple[str, ParamLayout | LayoutRule]], *, default: LayoutRule = default_layout
) -> LayoutRule:
    """A rule by path: the first pattern found in the leaf's `path_name` decides, else `default`.

    Args:
      rules: pairs of a regular expression, searched in `path_name(path)`, and a layout or another rule.
      default: the rule for leaves that no pattern matches.

    Returns:
      A layout rule.

    Raises:
      ValueError: if a pattern is not a regular expression, or what it stands for is no layout and no rule.
    """
    compiled = []
    for index, (pattern, chosen) in enumerate(rules):
        if not isinstance(chosen, ParamLayout) and not callable(chosen):
            came = f"{chosen!r} of type {type(chosen).__name__}"
            _checks.fail("optim.layout_rules", f"rules[{index}]", came, "a ParamLayout or a function (path, leaf)")
        try:
            compiled.append((re.compile(pattern), chosen))
        except (re.error, TypeError) as error:
            _checks.fail("optim.layout_rules", f"rules[{index}]", f"{pattern!r} ({error})", "a regular expression")

    def rule(path: KeyPath, leaf: Any) -> ParamLayout:
        name = path_name(path)
        for pattern, chosen in compiled:
            if pattern.search(name):
                return chosen if isinstance(chosen, ParamLayout) else chosen(path, leaf)
        return default(path, leaf)

    return rule


def param_layouts(params: Any, layout: LayoutRule | None = None) -> Any:
    """The layout of every leaf of a parameter tree, with axes counted from the front.

    Args:
      params: any pytree of arrays, or of anything with shape and dtype.
      layout: a layout rule; default `default_layout`.

    Returns:
      A tree of the structure of `params` whose leaves are `ParamLayout`.

    Raises:
      ValueError: if a layout does not fit its leaf.
    """
    rule = default_layout if layout is None else layout
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf_layout("optim.param_layouts", rule, path, leaf), params
    )


def leaf_layout(function: str, rule: LayoutRule, path: KeyPath, leaf: Any) -> ParamLayout:
    """The resolved layout of one leaf, with errors in the name of `function`."""
    return rule(path, leaf).resolve(function, path_name(path) or "params", jnp.ndim(leaf))
