"""Records the calls of a model's layers, with their inputs and outputs."""

from __future__ import annotations

import contextvars
import dataclasses
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from flax import nnx
from jax.core import Tracer

__all__ = ["Call", "current_path", "recorded_calls"]

_NUMBERS = itertools.count()
_LOCK = threading.RLock()  # classes are shared by all threads
_current_path: contextvars.ContextVar[str | None] = contextvars.ContextVar("current_path", default=None)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        path: the module's path in the model, such as "layer1.0.conv2"; "" for the model itself.
        module: the called module.
        inputs: the arguments in the order of the signature, omitted ones with their defaults.
        outputs: the return value.
        input_shapes: the shape of each array among the inputs, None for each input that is not an array. Under
            ``jax.vmap`` the shapes include the mapped axes, in front.
        output_shapes: likewise, of the outputs.
    """

    path: str
    module: Any
    inputs: tuple[Any, ...]
    outputs: Any
    input_shapes: tuple[tuple[int, ...] | None, ...]
    output_shapes: tuple[tuple[int, ...] | None, ...]


@contextmanager
def recorded_calls(model: nnx.Module, want: Callable[[nnx.Module], bool]) -> Iterator[list[Call]]:
    """Records the calls of a model's modules, in order, while the context is open.

    A call inside a recorded call is not recorded separately. Modules are found anywhere in the model; a shared module
    has the first of its paths. Calls inside ``jax.jit``, ``nnx.jit`` and every step of ``jax.lax.scan`` are recorded.
    The context disables compilation, which is slow: open it while JAX traces, inside ``jax.jit`` or
    ``jax.eval_shape``. Inside ``jax.checkpoint`` inputs and outputs have shapes but no values, and JAX does not run
    the same function of the same module and shapes twice: the second call is missing.

    Args:
        model: any NNX model; restored when the context closes, also after an exception.
        want: selects the modules; called once for each, before any call.

    Yields:
        The list that receives the calls.

    Example:
        >>> import jax.numpy as jnp
        >>> model = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(5, 2, rngs=nnx.Rngs(0)))
        >>> with recorded_calls(model, lambda module: isinstance(module, nnx.Linear)) as calls:
        ...     y = model(jnp.ones((4, 3)))
        >>> [(call.path, call.inputs[0].shape, call.outputs.shape) for call in calls]
        [('layers.0', (4, 3), (4, 5)), ('layers.2', (4, 5), (4, 2))]
    """
    wanted = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model) if want(module)}
    recorder = _Recorder()
    with _LOCK, ExitStack() as stack:
        for path, module in wanted.items():
            setattr(module, recorder.mark, path)
            stack.callback(delattr, module, recorder.mark)
        classes = {type(module) for module in wanted.values()}
        for cls in (cls for cls in classes if any("__call__" in vars(base) for base in cls.__mro__)):
            stack.enter_context(recorder.watch(cls))
        stack.enter_context(jax.disable_jit())  # JAX would not rerun a function that it has traced before
        yield recorder.calls


def current_path() -> str | None:
    """The path of the module whose recorded call is running; None outside of recorded calls."""
    return _current_path.get()


class _Recorder:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        # An attribute of the modules, not their ids, since nnx.jit and nnx.remat call copies. A new name each time,
        # since these would not rerun a function that they traced with the old one.
        self.mark = f"_recorded_path_{next(_NUMBERS)}"
        self.is_inside = False  # inside a recorded call

    @contextmanager
    def watch(self, cls: type) -> Iterator[None]:
        """Records the calls of marked instances of a class; Python looks ``__call__`` up in the class only."""
        has_own = "__call__" in vars(cls)
        call: Any = cls.__call__

        def recording(module: Any, *arguments: Any, **named: Any) -> Any:
            path = vars(module).get(self.mark)
            if path is None or type(module) is not cls or self.is_inside:
                return call(module, *arguments, **named)
            self.is_inside = True
            token = _current_path.set(path)
            try:
                outputs = call(module, *arguments, **named)
            finally:
                self.is_inside = False
                _current_path.reset(token)
            bound = inspect.signature(call).bind(module, *arguments, **named)
            bound.apply_defaults()
            inputs = tuple(bound.arguments.values())[1:]
            self.calls.append(Call(path, module, inputs, outputs, _shapes(inputs), _shapes(outputs)))
            return outputs

        cls.__call__ = recording
        try:
            yield
        finally:
            if has_own:
                cls.__call__ = call
            else:
                del cls.__call__


def _shapes(values: Any) -> tuple[tuple[int, ...] | None, ...]:
    leaves = jax.tree.leaves(values, is_leaf=lambda leaf: leaf is None)
    return tuple((*_mapped_axes(leaf), *leaf.shape) if hasattr(leaf, "shape") else None for leaf in leaves)


def _mapped_axes(array: Any) -> list[int]:
    """The sizes of an array's axes mapped by ``jax.vmap``, outermost first."""
    sizes: list[int] = []
    if not isinstance(array, Tracer):
        return sizes

    @jax.custom_batching.custom_vmap
    def seen(array: jax.Array) -> jax.Array:
        return array

    @seen.def_vmap
    def _(axis_size: int, is_mapped: list[bool], array: jax.Array) -> tuple[jax.Array, bool]:
        sizes.insert(0, axis_size)
        return seen(array), is_mapped[0]

    seen(array)
    return sizes
