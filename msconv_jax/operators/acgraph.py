"""Adaptive connection over the nodes of a general graph (Wang et al.: Adaptively Connected Networks, CVPR 2019)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from msconv_jax.arguments import check_groups
from msconv_jax.costs import Shapes, known_shape
from msconv_jax.modes.dtypes import compute_dtype, wide_dtype
from msconv_jax.signatures import explains_arguments

_KERNEL_INIT, _BIAS_INIT = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()  # nnx.Linear's


class ACGraph(nnx.Module):
    """Adaptively connected layer over the nodes of a general graph, with constant edge weights.

    For nodes i with features x_i (Eqs. 5 and 6)

        y_i = alpha x_i u + beta sum_{j in N(i)} zeta_ij (x_j v) + gamma sum_{all j} xi_ij (x_j w) + bias,

    where u, v and w are learnt matrices that all nodes share and (alpha, beta, gamma) is the softmax of three learnt
    numbers. zeta and xi are not learnt but arguments of the call: samples of :func:`graph_constants`, or for example a
    normalised adjacency matrix.

    The paper writes alpha_i, beta_i and gamma_i. Here all nodes share them, as in Eq. (2), so that one layer works for
    graphs of any number of nodes. Experimental: the paper gives one result for this form and no details.

    Args:
        in_features: number of features of a node.
        out_features: number of output features of a node.
        use_bias: whether to add a bias; the paper's equation has none.
        dtype: of the computation; by default the nodes' dtype if it is half precision, else the promoted dtype of
            nodes and parameters.
        param_dtype: of the parameters.
        precision: of the products, as in ``jax.numpy.matmul``.
        kernel_init: for u, v and w.
        bias_init: for the bias.
        rngs: for the initial values.

    Attributes:
        u: ``(in_features, out_features)``, for the node itself.
        v: ``(in_features, out_features)``, for its neighbours.
        w: ``(in_features, out_features)``, for all nodes.
        mix_logits: ``(3,)``, for alpha, beta and gamma, initially ones.
        bias: ``(out_features,)``, or None.

    Raises:
        ValueError: for numbers of features that are not positive ints.

    Source: Eqs. (2), (5) and (6) of the paper.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.operators.acgraph import ACGraph, graph_constants
        >>> neighbours = jnp.eye(5, k=1) + jnp.eye(5, k=-1)  # a path of five nodes
        >>> zeta, xi = graph_constants(jax.random.key(0), neighbours)
        >>> layer = ACGraph(4, 8, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 5, 4)), zeta, xi).shape
        (2, 5, 8)
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = _KERNEL_INIT,
        bias_init: Initializer = _BIAS_INIT,
        rngs: nnx.Rngs,
    ):
        check_groups(in_features, out_features, 1)
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = bool(use_bias)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        shape = (in_features, out_features)
        self.u = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.v = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.w = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.mix_logits = nnx.Param(jnp.ones((3,), param_dtype))
        self.bias: nnx.Param[jax.Array] | None = nnx.data(None)
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype))

    def __call__(self, inputs: ArrayLike, zeta: ArrayLike, xi: ArrayLike) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: ``(*batch, n, in_features)``, n nodes; zero or more batch axes.
            zeta: ``(n, n)`` weights, row i of the neighbours of node i, zero elsewhere; or ``(*batch, n, n)``.
            xi: ``(n, n)`` weights, row i of all nodes for node i; or ``(*batch, n, n)``.

        Returns:
            ``(*batch, n, out_features)``.

        Raises:
            ValueError: if the shapes do not fit.
        """
        x, u, v, w, zeta, xi = (
            array if self.dtype is None else jnp.asarray(array).astype(self.dtype)
            for array in (inputs, self.u[...], self.v[...], self.w[...], zeta, xi)
        )
        y = ac_graph(x, u, v, w, zeta, xi, self.mix_logits[...], precision=self.precision)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))

    def macs(self, input_shapes: Shapes, output_shapes: Shapes) -> int:
        """Multiply-accumulates of one call: three products with the matrices, and two with the edge weights.

        Args:
            input_shapes: shapes of the nodes and both kinds of edge weights: see :mod:`msconv_jax.costs`.
            output_shapes: the shape of the output, ``(*batch, n, out_features)``.
        """
        *batch, nodes, outputs = known_shape("output_shapes", output_shapes, 0, 2)
        return math.prod(batch) * nodes * outputs * (3 * self.in_features + 2 * nodes)


def ac_graph(
    x: ArrayLike,
    u: ArrayLike,
    v: ArrayLike,
    w: ArrayLike,
    zeta: ArrayLike,
    xi: ArrayLike,
    mix_logits: ArrayLike,
    *,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Adaptive connection over a graph as a pure function: ``alpha x u + beta zeta (x v) + gamma xi (x w)``.

    Args:
        x: ``(*batch, n, in_features)``.
        u: ``(in_features, out_features)``.
        v: ``(in_features, out_features)``.
        w: ``(in_features, out_features)``.
        zeta: ``(n, n)`` or ``(*batch, n, n)``, weights of the neighbours, zero elsewhere.
        xi: ``(n, n)`` or ``(*batch, n, n)``, weights of all nodes.
        mix_logits: ``(3,)``, whose softmax is (alpha, beta, gamma).
        precision: of the products, as in ``jax.numpy.matmul``.

    Returns:
        ``(*batch, n, out_features)``. The computation has the dtype of `x` if this is half precision, else the promoted
        dtype of the nodes, matrices and edge weights.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Eqs. (2), (5) and (6) of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.acgraph import ac_graph
        >>> x, eye, edges = jnp.ones((2, 1)), jnp.ones((1, 1)), jnp.ones((2, 2))
        >>> ac_graph(x, eye, eye, eye, edges, edges, jnp.zeros(3)).tolist()  # (1 + 2 + 2) / 3
        [[1.6666667461395264], [1.6666667461395264]]
    """
    arrays = x, u, v, w, zeta, xi = [jnp.asarray(array) for array in (x, u, v, w, zeta, xi)]
    mix_logits = jnp.asarray(mix_logits)
    if x.ndim < 2 or u.ndim != 2 or x.shape[-1] != u.shape[0] or not u.shape == v.shape == w.shape:
        raise ValueError(
            f"x, u, v and w have shapes {x.shape}, {u.shape}, {v.shape} and {w.shape}: expected "
            "(*batch, n, in_features) and three times (in_features, out_features)."
        )
    if mix_logits.shape != (3,):
        raise ValueError(f"mix_logits has shape {mix_logits.shape}: expected (3,), for alpha, beta and gamma.")
    nodes = x.shape[-2]
    for name, edges in (("zeta", zeta), ("xi", xi)):
        if edges.shape not in ((nodes, nodes), (*x.shape[:-1], nodes)):
            raise ValueError(
                f"{name} has shape {edges.shape} for nodes of shape {x.shape}: expected ({nodes}, {nodes}), or that "
                "after the same batch axes."
            )
    dtype = compute_dtype(*arrays)
    x, u, v, w, zeta, xi = (array.astype(dtype) for array in arrays)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision=precision)

    terms = product(x, u), product(zeta, product(x, v)), product(xi, product(x, w))
    wide = wide_dtype(dtype)  # a half-precision sum is rounded once
    alpha, beta, gamma = jax.nn.softmax(mix_logits.astype(wide))
    own, local, everything = (term.astype(wide) for term in terms)
    return (alpha * own + beta * local + gamma * everything).astype(dtype)


def graph_constants(
    key: jax.Array, neighbours: ArrayLike, *, normalize: bool = True, dtype: DTypeLike = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Draws the constant edge weights zeta and xi of Eq. (6).

    The paper specifies only that they are Gaussian. Here both have mean 0 and are independent for every ordered pair of
    nodes.

    Args:
        key: random key.
        neighbours: ``(*batch, n, n)``, nonzero where node j (last axis) is a neighbour of node i. The diagonal is the
            caller's choice; on a grid the paper's N(i) is the 3 x 3 window with its centre.
        normalize: if true, the variance in row i is 1 over the number of its entries, so that a sum of any number of
            terms has the variance of one term; else it is 1.
        dtype: of the weights.

    Returns:
        zeta, zero between nodes that are not neighbours, and xi; both ``(*batch, n, n)``.

    Raises:
        ValueError: if `neighbours` is not square.

    Source: Eq. (6) of the paper.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.acgraph import graph_constants
        >>> zeta, xi = graph_constants(jax.random.key(0), jnp.eye(3))
        >>> int((zeta != 0).sum()), int((xi != 0).sum())
        (3, 9)
    """
    mask = jnp.asarray(neighbours).astype(bool)
    if mask.ndim < 2 or mask.shape[-1] != mask.shape[-2]:
        raise ValueError(f"neighbours has shape {mask.shape}: expected (n, n), a row for each node.")
    of_zeta, of_xi = jax.random.split(key)
    zeta = jnp.where(mask, jax.random.normal(of_zeta, mask.shape, dtype), 0)
    xi = jax.random.normal(of_xi, mask.shape, dtype)
    if normalize:
        count = jnp.maximum(mask.sum(-1, keepdims=True), 1)
        zeta, xi = zeta / jnp.sqrt(count).astype(dtype), xi / math.sqrt(max(mask.shape[-1], 1))
    return zeta, xi
