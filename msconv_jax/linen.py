"""The operators as Flax Linen modules, with ordinary ``params`` and ``batch_stats`` collections.

Every class here has the name and the keyword arguments of the NNX operator. As in Linen's layers, the number of output
channels is ``features``, the number of input channels follows from the input, and there are no ``rngs``. The tree of
parameters is the NNX module's, with number strings as the keys of lists; :func:`params_of` converts values from NNX.

    >>> import jax, jax.numpy as jnp
    >>> from msconv_jax import linen as msconv
    >>> conv = msconv.PSConv(features=16, kernel_size=(3, 3), strides=2, padding=1)
    >>> variables = conv.init(jax.random.key(0), jnp.ones((1, 15, 15, 8)))
    >>> jax.tree.map(jnp.shape, variables)
    {'params': {'bias': (16,), 'kernel': (3, 3, 8, 16)}}
    >>> conv.apply(variables, jnp.ones((1, 15, 15, 8))).shape
    (1, 8, 8, 16)

Operators with batch normalisation inside (``Res2Conv``, ``SISConv(inner="bnrelu")``) have the call argument
``use_running_average`` and store their statistics in ``batch_stats``:

    >>> conv = msconv.Res2Conv(features=16, kernel_size=(3, 3))
    >>> variables = conv.init(jax.random.key(0), jnp.ones((1, 7, 7, 16)))
    >>> y, updated = conv.apply(variables, jnp.ones((1, 7, 7, 16)), mutable=["batch_stats"])
    >>> sorted(updated["batch_stats"]["bns"]["0"])
    ['mean', 'var']
    >>> conv.apply(variables, jnp.ones((1, 7, 7, 16)), use_running_average=True).shape
    (1, 7, 7, 16)
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from msconv_jax import operators

__all__ = ["linen_form", "params_of"]
__all__ += operators.__all__

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Any Linen form, for type checkers: the loop at the end of this file creates the classes."""


_COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class _OperatorsDefault:
    """Placeholder for an argument that keeps the operator's default."""

    def __repr__(self) -> str:
        return "<the operator's default>"

    def __reduce__(self) -> str:
        return "_DEFAULT"  # copies are the same object


_DEFAULT = _OperatorsDefault()


class LinenOperator(nn.Module):
    """Base of the classes below: stores an NNX operator's arguments, and its values as Linen variables.

    Attributes:
        operator: the NNX class.
        renamed: the NNX names of the fields with another name here.
    """

    operator: ClassVar[type[nnx.Module]]
    renamed: ClassVar[Mapping[str, str]]

    def _make(self, in_features: int, key: jax.Array) -> nnx.Module:
        arguments = {
            self.renamed.get(field.name, field.name): getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("name", "parent") and getattr(self, field.name) is not _DEFAULT
        }
        accepted = inspect.signature(self.operator.__init__).parameters
        if "in_features" in accepted:
            arguments["in_features"] = in_features
        if "rngs" in accepted:
            arguments["rngs"] = nnx.Rngs(params=key)
        return self.operator(**arguments)

    @nn.compact
    def __call__(self, inputs: Any, *others: Any, use_running_average: bool = False, **options: Any) -> Any:
        """Applies the operator.

        Args:
            inputs: the NNX operator's inputs, channels last; for OctConv an array or a pair.
            *others: the operator's further inputs, such as PACConv's guide.
            use_running_average: whether to normalise by the running statistics, without an update, instead of the
                batch statistics. Operators without batch normalisation ignore it.
            **options: the keyword arguments of the NNX operator's call.
        """
        maps = inputs if isinstance(inputs, tuple | list) else (inputs,)
        in_features = sum(jnp.shape(part)[-1] for part in maps if part is not None)
        abstract = nnx.eval_shape(lambda: self._make(in_features, jax.random.key(0)))
        graphdef, state = nnx.split(abstract)
        flat = dict(nnx.to_flat_state(state))
        drawn = {}
        if self.is_initializing():
            key = self.make_rng("params")
            drawn = dict(nnx.to_flat_state(nnx.state(self._make(in_features, key))))

        def initial(path: tuple[Any, ...]) -> jax.Array:
            value = drawn.get(path, flat[path])  # apply calls this too, for the shapes only
            return value[...] if path in drawn else jnp.zeros(value.shape, value.dtype)

        values, statistics = {}, {}
        for collection, kind in _COLLECTIONS.items():
            of_kind = [path for path, variable in flat.items() if isinstance(variable, kind)]
            for name in dict.fromkeys(str(path[0]) for path in of_kind):
                paths = [path for path in of_kind if str(path[0]) == name]
                if collection == "params":
                    tree = self.param(name, lambda key, paths=paths: _nested(paths, initial))
                else:
                    statistics[name] = self.variable(collection, name, _nested, paths, initial)
                    tree = statistics[name].value
                values |= {path: _at(tree, path[1:]) for path in paths}
        module: Any = nnx.merge(
            graphdef, nnx.from_flat_state([(path, flat[path].replace(value)) for path, value in values.items()])
        )
        module.eval() if use_running_average else module.train()
        result = module(*((inputs, *others)), **options)
        if statistics and not use_running_average and not self.is_initializing():
            after = dict(nnx.to_flat_state(nnx.state(module, nnx.BatchStat)))
            for name, variable in statistics.items():
                paths = [path for path in after if str(path[0]) == name]
                variable.value = _nested(paths, lambda path: after[path][...])
        return result


def params_of(module: nnx.Module) -> dict[str, Any]:
    """The values of an NNX operator as the variables of its Linen form.

    Args:
        module: an operator of this library.

    Returns:
        A dict with ``params`` and, if the operator has batch statistics, ``batch_stats``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> import msconv_jax
        >>> from msconv_jax import linen
        >>> trained = msconv_jax.HetConv(8, 8, (3, 3), parts=4, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((1, 5, 5, 8))
        >>> y = linen.HetConv(features=8, kernel_size=(3, 3), parts=4).apply(linen.params_of(trained), x)
        >>> bool((y == trained(x)).all())
        True
    """
    variables = {}
    for collection, kind in _COLLECTIONS.items():
        flat = dict(nnx.to_flat_state(nnx.state(module, kind)))
        if flat:
            names = dict.fromkeys(str(path[0]) for path in flat)
            variables[collection] = {
                name: _nested([path for path in flat if str(path[0]) == name], lambda path: flat[path][...])  # noqa: B023
                for name in names
            }
    return variables


def _nested(paths: list[tuple[Any, ...]], value_of: Any) -> Any:
    """The values below one top-level name: an array, or dicts with string keys."""
    if len(paths) == 1 and len(paths[0]) == 1:
        return value_of(paths[0])
    tree: dict[str, Any] = {}
    for path in paths:
        below = tree
        for part in path[1:-1]:
            below = below.setdefault(str(part), {})
        below[str(path[-1])] = value_of(path)
    return tree


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        tree = tree[str(part)]
    return tree


def linen_form(operator: type[nnx.Module]) -> Any:
    """The Linen class of an NNX operator, with one field for each argument, including those of ``nnx.Conv``.

    It creates the classes of this file, and also works for your operators.

    Args:
        operator: an NNX class. Its constructor has the arguments `in_features` and `rngs`, if it needs them, and
            `out_features`, here ``features``. It declares further arguments of ``nnx.Conv`` as
            ``**options: Unpack[ConvOptions]``. Its variables are parameters and batch statistics.

    Returns:
        The class, with the operator's name.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import msconv_jax
        >>> class Doubled(msconv_jax.PSConv):
        ...     def __call__(self, inputs):
        ...         return 2 * super().__call__(inputs)
        >>> conv = linen_form(Doubled)(features=16, kernel_size=(3, 3))
        >>> conv.init_with_output(jax.random.key(0), jnp.ones((1, 5, 5, 8)))[0].shape
        (1, 5, 5, 16)
    """
    renamed = {"features": "out_features"}
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(operator.__init__).parameters.items():
        if name in ("self", "in_features", "rngs"):
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            (options,) = get_args(get_type_hints(operator.__init__)[name])  # the TypedDict inside Unpack
            fields |= {option: _DEFAULT for option in get_type_hints(options) if option not in fields}
        else:
            field = "features" if name == "out_features" else name
            fields[field] = parameter.default
    annotations = dict.fromkeys(fields, Any)
    order = sorted(fields, key=lambda name: fields[name] is not inspect.Parameter.empty)  # required fields first
    first = (operator.__doc__ or "").partition("\n")[0]
    return type(
        operator.__name__,
        (LinenOperator,),
        {
            **{name: _DEFAULT for name in order if fields[name] is not inspect.Parameter.empty},
            "__annotations__": {name: annotations[name] for name in order},
            "__module__": __name__,
            "__qualname__": operator.__name__,
            "__doc__": f"Linen form of `{operator.__name__}`. {first}",
            "operator": operator,
            "renamed": renamed if "features" in fields and operator is not operators.PACPool else {},
        },
    )


for _operator in operators.ALL:
    globals()[_operator.__name__] = linen_form(_operator)
