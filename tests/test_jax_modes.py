"""Every operator, and one network of every family, in each mode of JAX that ``nnx.Conv`` supports.

A mode rejects programs during tracing, so the quick tests only trace. The slow tests compare numbers with those of the
ordinary mode.
"""

import contextlib
import copy
import functools
import itertools
import json
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from msconv_jax import KernelLattice, Tile, lattice_convolve, linen
from msconv_jax.lowering.choose import LOWERINGS
from msconv_jax.models import create_model, model_entry
from msconv_jax.models.families.octave.blocks import OctConvNormAct
from msconv_jax.operators import (
    DROP_IN,
    ACConv,
    ACGraph,
    GroupedConv,
    HetConv,
    OctConv,
    PACConv,
    PACConvTranspose,
    PACPool,
    PSConv,
    PyConv,
    Res2Conv,
    SISConv,
)
from tests.models.test_every_model import filled, odd_size, shallow
from tests.operators.test_contract import CASES, build


def rngs():
    return nnx.Rngs(params=jax.random.key(0, impl="rbg"), dropout=0)


def made(kind, *args, **setting):
    """Returns a constructor of a module, with random streams of the current trace."""
    return lambda **options: kind(*args, rngs=rngs(), **setting, **options)


def image(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


X, GUIDE = image(4, 6, 8, 8), image(4, 6, 8, 3)


class WithMask(nnx.Module):
    """A pixel-adaptive operator with a mask."""

    def __init__(self, operator):
        self.operator = operator

    def __call__(self, x, guide, mask):
        return self.operator(x, guide, mask=mask)[0]


class WithKernel(nnx.Module):
    """A pixel-adaptive operator with a precomputed adapting kernel."""

    def __init__(self, operator):
        self.operator = operator

    def __call__(self, x, guide):
        return self.operator(x, kernel=self.operator.adapting_kernel(guide))


def operator_cases():
    """Name -> (constructor of the module with the options dtype and param_dtype, abstract inputs)."""
    cases = {}

    def add(name, make, *inputs):
        assert name not in cases
        cases[name] = (make, inputs)

    for number, (operator, setting) in enumerate(CASES):
        for strides in (1, 2):
            own = functools.partial(build, operator, strides=strides, **setting)
            add(f"{operator.__name__}-{number}-{strides}", own, X)
    for lowering in LOWERINGS:
        add(f"PSConv-{lowering}", functools.partial(build, PSConv, pattern=(1, 2), lowering=lowering), X)
        grouped = functools.partial(build, GroupedConv, feature_group_count=4, strides=2, lowering=lowering)
        add(f"GroupedConv-{lowering}", grouped, X)
        add(f"depthwise-{lowering}", functools.partial(build, GroupedConv, feature_group_count=8, lowering=lowering), X)
        add(f"HetConv-{lowering}", functools.partial(build, HetConv, parts=2, lowering=lowering), X)
        levels = functools.partial(build, PyConv, growth=(0, 2), groups=(1, 4), strides=2, lowering=lowering)
        add(f"PyConv-{lowering}", levels, X)
    for operator in (GroupedConv, ACConv, SISConv):
        add(f"{operator.__name__}-two batch axes", functools.partial(build, operator), image(4, 2, 6, 8, 8))
        add(f"{operator.__name__}-one axis", functools.partial(build, operator, kernel_size=(3,)), image(4, 6, 8))
    position = {"mix": "position", "spatial_shape": (6, 8)}
    for name, setting in {"position": position, "fixed": {"learn_mix": False}, "global": {"use": ("global",)}}.items():
        add(f"ACConv-{name}", functools.partial(build, ACConv, **setting), X)
    add("Res2Conv-normal", functools.partial(build, Res2Conv), X)
    add("SISConv-bnrelu", functools.partial(build, SISConv, inner="bnrelu"), X)

    shares = {"alpha_in": 0.25, "alpha_out": 0.5}
    pair = image(4, 6, 8, 6), image(4, 3, 4, 2)
    add("OctConv-1", made(OctConv, 8, 8, (3, 3), **shares), pair)
    add("OctConv-2", made(OctConv, 8, 8, (3, 3), 2, **shares), pair)
    add("OctConv-stride", made(OctConv, 8, 8, (3, 3), 2, down="stride", **shares), pair)
    add("OctConv-odd", made(OctConv, 8, 8, (3, 3), **shares), (image(4, 5, 7, 6), image(4, 3, 4, 2)))
    add("OctConv-first", made(OctConv, 8, 8, (3, 3), alpha_in=0, alpha_out=0.5), X)
    add("OctConvNormAct", made(OctConvNormAct, 8, 8, (3, 3), **shares), pair)

    kinds = {
        "gaussian": {},
        "inverse": {"kernel_type": "inv_1_0.5", "normalize_kernel": True},
        "asymmetric": {"kernel_type": "inv_1_0.5_asym_fixed", "smooth_kernel_type": "full_3"},
    }
    for name, setting in kinds.items():
        add(f"PACConv-{name}", made(PACConv, 8, 8, (3, 3), **setting), X, GUIDE)
        up = made(PACConvTranspose, 8, 8, (3, 3), 2, **setting)
        add(f"PACConvTranspose-{name}", up, X, image(4, 12, 16, 3))
        add(f"PACPool-{name}", functools.partial(PACPool, (3, 3), 2, **setting), X, GUIDE)
    shared = made(PACConv, 8, 8, (3, 3), 2, shared_filters=True)
    add("PACConv-shared", shared, image(4, 2, 6, 8, 8), image(4, 2, 6, 8, 3))
    each = {"channel_wise": True, "features": 8, **kinds["inverse"]}
    add("PACPool-channels", functools.partial(PACPool, (3, 3), **each), X, X)
    add("PACConv-mask", lambda **k: WithMask(PACConv(8, 8, (3, 3), rngs=rngs(), **k)), X, GUIDE, image(4, 6, 8))
    add("PACConv-kernel", lambda **k: WithKernel(PACConv(8, 8, (3, 3), rngs=rngs(), **k)), X, GUIDE)
    add("ACGraph", made(ACGraph, 4, 8), image(4, 5, 4), image(5, 5), image(4, 5, 5))
    return cases


QUICK = [
    *(f"PSConv-{lowering}" for lowering in LOWERINGS),
    *("GroupedConv-grouped", "HetConv-dense", "PyConv-packs", "ACConv-one axis", "ACConv-position"),
    *("SISConv-bnrelu", "Res2Conv-normal", "OctConv-2", "OctConv-odd", "OctConvNormAct", "PACConv-inverse"),
    *("PACConv-kernel", "PACConvTranspose-gaussian", "PACPool-channels", "ACGraph"),
]


def quick_cases():
    """Cases with every lowering, and with the operators beyond a single lattice."""
    cases = operator_cases()
    return {name: cases[name] for name in QUICK}


ONE_OF_EACH = [
    *("PSConv-grouped", "HetConv-dense", "PyConv-packs", "ACConv-position", "SISConv-bnrelu", "Res2Conv-normal"),
    *("OctConv-2", "PACConv-inverse", "PACConvTranspose-gaussian", "PACPool-channels", "ACGraph"),
]


def one_of_each():
    """The operators for comparisons between devices; DynamicPSConv and ICConv compute like PSConv."""
    cases = operator_cases()
    return {name: cases[name] for name in ONE_OF_EACH}


# A network of each family, and whether it is traced in the quick tests.
FAMILIES = {
    "ps_resnet8": True,
    "oct_resnet8": False,
    "ac_resnet50": False,
    "het_vgg16_cifar": False,
    "ic_resnet18": False,
    "mobilenetv1": False,
    "oct_mobilenetv2": False,
    "ps_se_resnet50": False,
    "pyconv_resnet18": False,
    "pyconvhg_resnet50": False,
    "res2net50_v1b": False,
    "res2net_dla60": False,
    "sis_res2net50": False,
    "seg_baseline_ps_resnet8": False,
}
over_families = pytest.mark.parametrize(
    "name", [name if quick else pytest.param(name, marks=pytest.mark.slow) for name, quick in FAMILIES.items()]
)


def family_case(name):
    """The constructor and the abstract inputs of a network."""
    if model_entry(name).task == "classification":
        size, make = odd_size(name), functools.partial(shallow, name)
    else:
        size, make = (33, 41), lambda **k: nnx.eval_shape(lambda: create_model(name, rngs=rngs(), **k))
    return make, (image(4, *size, 3),)


# --- a training step ---


def step(graphdef, params, rest, inputs):
    """The outputs, and the gradients of their summed squares with respect to parameters and inputs."""

    def loss(params, inputs):
        outputs = nnx.merge(graphdef, params, rest, copy=True)(*inputs)
        return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(outputs)), outputs

    (_, outputs), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)
    return outputs, gradients


def traced(make, inputs, **options):
    """The shapes and dtypes of a step's results."""
    graphdef, params, rest = nnx.split(nnx.eval_shape(lambda: make(**options)), nnx.Param, ...)
    return jax.eval_shape(functools.partial(step, graphdef), params, rest, inputs)


def cast(inputs, dtype):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), inputs)


def dtypes_of(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


def on_mesh(mesh, inputs, spec):
    """The inputs sharded by `spec`; inputs without a batch axis are replicated."""

    def place(leaf):
        own = spec if leaf.shape[:1] == (4,) else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, own))

    return jax.tree.map(place, inputs)


def check_on_explicit_mesh(make, inputs, mesh, spec):
    """Traces the step on an abstract mesh with explicit axes; outputs and inputs have the same sharding."""
    with jax.sharding.use_abstract_mesh(mesh):
        graphdef, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
        params, rest = (on_mesh(mesh, part, P()) for part in (params, rest))
        outputs, (of_params, of_inputs) = jax.eval_shape(
            functools.partial(step, graphdef), params, rest, on_mesh(mesh, inputs, spec)
        )
    assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves(outputs)} == {spec[0]}
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(of_params))
    for gradient, given in zip(jax.tree.leaves(of_inputs), jax.tree.leaves(inputs), strict=True):
        assert gradient.sharding.spec[0] == (spec[0] if given.shape[:1] == (4,) else None)


def by_shards(mesh, graphdef, inputs):
    """The step in ``jax.shard_map`` with its default checks, for a batch sharded along "data"."""
    specs = jax.tree.map(lambda leaf: P("data") if leaf.shape[:1] == (4,) else P(), inputs)
    return jax.shard_map(
        functools.partial(step, graphdef), mesh=mesh, in_specs=(P(), P(), specs), out_specs=(P("data"), (P(), specs))
    )


def check_by_shards(make, inputs):
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    graphdef, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    jax.eval_shape(by_shards(mesh, graphdef, inputs), params, rest, inputs)


EXPLICIT = AbstractMesh((2,), ("data",), axis_types=(AxisType.Explicit,))
GRID = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)


# --- operators ---


def test_operators_of_one_dtype_take_inputs_of_another():
    """JAX promotes neither dtypes nor ranks, as in all tests."""
    for name, (make, inputs) in quick_cases().items():
        outputs, _ = traced(make, cast(inputs, jnp.float16), dtype=jnp.bfloat16)
        assert dtypes_of(outputs) == {jnp.dtype(jnp.bfloat16)}, name


@pytest.mark.slow
def test_every_operator_in_every_dtype():
    """The dtype of the result is the module's, or that of the inputs for a module without one."""
    floats = (jnp.float32, jnp.bfloat16, jnp.float16)
    for name, (make, inputs) in operator_cases().items():
        for dtype, of_inputs in itertools.product((None, *floats), floats):
            options = {} if dtype is None else {"dtype": dtype}
            outputs, _ = traced(make, cast(inputs, of_inputs), **options)
            assert dtypes_of(outputs) == {jnp.dtype(dtype or of_inputs)}, (name, dtype, of_inputs)


def test_operators_on_an_explicit_mesh():
    for make, inputs in quick_cases().values():
        check_on_explicit_mesh(make, inputs, EXPLICIT, P("data"))


@pytest.mark.slow
def test_operators_on_an_explicit_mesh_of_two_axes():
    for make, inputs in operator_cases().values():
        check_on_explicit_mesh(make, inputs, GRID, P(("data", "model")))


def test_operators_by_shards():
    for make, inputs in quick_cases().values():
        check_by_shards(make, inputs)


@pytest.mark.slow
def test_operators_by_shards_of_any_kind():
    for make, inputs in operator_cases().values():
        check_by_shards(make, inputs)


def test_sharded_columns_are_kept():
    """Sharded columns stay as in ``nnx.Conv``; sharded channels, which it rejects, are gathered."""
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 6, 8, 8), (3, 3, 8, 8)))
    tiles = (Tile(slice(0, 8), slice(0, 4), (3, 3)), Tile(slice(0, 8), slice(4, 8), (3, 3), (2, 2)))
    lattice = KernelLattice(8, 8, tiles)
    for spec, strides, expected in [
        (P("data", None, "model"), 1, P("data", None, "model", None)),
        (P("data", "model"), 2, P("data", None, None, None)),  # two shards cannot divide three rows
        (P(None, None, None, "model"), 1, P(None, None, None, None)),
    ]:
        with jax.sharding.use_abstract_mesh(GRID):
            run = functools.partial(lattice_convolve, lattice=lattice, strides=strides)
            y = jax.eval_shape(run, on_mesh(GRID, x, spec), on_mesh(GRID, kernel, P()))
        assert y.sharding.spec == expected


def linen_cases():
    x = jnp.ones((4, 6, 8, 8))
    guide = jnp.ones((4, 6, 8, 3))
    own = {"DynamicPSConv": {"factors": (2, 2)}, "HetConv": {"parts": 4}, "ICConv": {"pattern": ((1, 1, 8),)}}
    for operator in DROP_IN:
        size = [(3, 3), (5, 5)] if operator is PyConv else (3, 3)
        options = {"kernel_sizes" if operator is PyConv else "kernel_size": size, **own.get(operator.__name__, {})}
        yield getattr(linen, operator.__name__), {"features": 8, **options}, (x,)
    yield linen.OctConv, {"features": 8, "kernel_size": (3, 3), "alpha_in": 0, "alpha_out": 0.5}, (x,)
    yield linen.PACConv, {"features": 8, "kernel_size": (3, 3)}, (x, guide)
    yield linen.PACConvTranspose, {"features": 8, "kernel_size": (3, 3)}, (x, guide)
    yield linen.PACPool, {"kernel_size": (3, 3)}, (x, guide)
    yield linen.ACGraph, {"features": 8}, (jnp.ones((4, 5, 8)), jnp.ones((5, 5)), jnp.ones((5, 5)))


@pytest.mark.slow
def test_linen_forms_in_every_mode():
    def run(module, key, inputs):
        variables = module.init(key, *inputs)
        outputs, _ = module.apply(variables, *inputs, mutable=["batch_stats"])
        return outputs

    half = {"dtype": jnp.bfloat16}
    key = jax.eval_shape(lambda: jax.random.key(0))
    for kind, options, inputs in linen_cases():
        outputs = jax.eval_shape(functools.partial(run, kind(**options, **half)), key, inputs)
        assert dtypes_of(outputs) == {jnp.dtype(jnp.bfloat16)}, kind
        with jax.sharding.use_abstract_mesh(EXPLICIT):
            placed = on_mesh(EXPLICIT, inputs, P("data"))
            outputs = jax.eval_shape(functools.partial(run, kind(**options)), key, placed)
        assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves(outputs)} == {"data"}, kind


# --- networks ---


@over_families
def test_networks_on_an_explicit_mesh(name):
    check_on_explicit_mesh(*family_case(name), EXPLICIT, P("data"))


@over_families
def test_networks_by_shards(name):
    check_by_shards(*family_case(name))


# --- copies ---


def copies(module):
    return pickle.loads(pickle.dumps(module)), copy.deepcopy(module)  # noqa: S301  # our own


def check_copies(make):
    module = nnx.eval_shape(make)
    pickled, copied = copies(module)
    assert nnx.graphdef(pickled) == nnx.graphdef(module)  # functions included
    for twin in (pickled, copied):
        assert jax.tree.structure(nnx.to_pure_dict(nnx.state(twin))) == jax.tree.structure(
            nnx.to_pure_dict(nnx.state(module))
        )


def test_operators_are_copied():
    for make, _ in quick_cases().values():
        check_copies(make)


@pytest.mark.slow
def test_operators_of_any_kind_are_copied():
    for make, _ in operator_cases().values():
        check_copies(make)


def test_modules_are_copied_with_any_activation_that_has_a_name():
    x = jnp.ones((2, 4, 4, 8))
    for act in (nnx.relu6, nnx.silu, nnx.gelu, jnp.tanh, functools.partial(nnx.leaky_relu, negative_slope=0.2)):
        conv = build(Res2Conv, kernel_size=(1, 1), norm=None, act=act)
        for twin in copies(conv):
            np.testing.assert_array_equal(twin(x), conv(x))
    check_copies(lambda: create_model("ps_resnet8", width=4, act=nnx.relu6, rngs=rngs()))


@over_families
def test_registered_networks_are_copied(name):
    check_copies(family_case(name)[0])


def test_linen_forms_are_copied():
    for kind, options, _ in linen_cases():
        module: nn.Module = kind(**options)
        assert all(twin == module for twin in copies(module))


# --- numbers ---


def numbers(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def concrete(make, inputs):
    module = make()
    leaves, tree = jax.tree.flatten(inputs)
    return module, jax.tree.unflatten(tree, [numbers(leaf.shape, seed) for seed, leaf in enumerate(leaves)])


def concrete_cases(operators):
    """The operators, and one network."""
    for name, (make, inputs) in operators.items():
        yield name, *concrete(make, inputs)
    for name in ("oct_resnet8",):
        make, inputs = family_case(name)
        module, inputs = concrete(lambda make=make: filled(make()), inputs)
        module.eval()
        yield name, module, inputs


def gap(got, expected):
    """The largest difference relative to the largest number."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(
        float(np.abs(np.float64(a) - np.float64(b)).max() / max(np.abs(np.float64(b)).max(), 1e-3)) for a, b in pairs
    )


def gaps_on_meshes():
    """Name -> the largest gap between one device and explicit meshes or shards."""
    meshes = {
        "data": (jax.make_mesh((2,), ("data",), devices=jax.devices()[:2]), P("data")),
        "grid": (jax.make_mesh((2, 2), ("data", "model")), P(("data", "model"))),
    }
    found = {}
    for name, module, inputs in concrete_cases(one_of_each()):
        graphdef, params, rest = nnx.split(module, nnx.Param, ...)
        expected = jax.tree.map(np.asarray, jax.jit(functools.partial(step, graphdef))(params, rest, inputs))

        def placed(mesh, spec, inputs=inputs):
            put = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec if leaf.shape[:1] == (4,) else P()))  # noqa: E731
            return jax.tree.map(put, inputs)

        for mesh_name, (mesh, spec) in meshes.items():
            for context in (jax.set_mesh(mesh), contextlib.nullcontext()):
                with context:
                    sharded = jax.device_put((params, rest), NamedSharding(mesh, P()))
                    got = jax.jit(functools.partial(step, graphdef))(*sharded, placed(mesh, spec))
                    assert len(jax.tree.leaves(got)[0].sharding.device_set) == mesh.size
                found[f"{name} on {mesh_name}"] = gap(got, expected)
        mesh, spec = meshes["data"]
        with jax.set_mesh(mesh):  # eager, without jit
            sharded = jax.device_put((params, rest), NamedSharding(mesh, P()))
            outputs = nnx.merge(graphdef, *sharded, copy=True)(*placed(mesh, spec))
        found[f"{name}, eager"] = gap(outputs, expected[0])
        of_batch = any(isinstance(part, nnx.BatchNorm) for _, part in nnx.iter_modules(module)) and "net" not in name
        if not of_batch:  # batch statistics in shard_map are per shard
            auto = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
            got = jax.jit(by_shards(auto, graphdef, inputs))(params, rest, inputs)
            found[f"{name} by shards"] = gap(got, expected)
        jax.clear_caches()
    return found


GAPS_PROGRAM = """
import json, jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)
from tests.test_jax_modes import gaps_on_meshes
print(json.dumps(gaps_on_meshes()))
"""


@pytest.mark.slow
def test_numbers_on_meshes_are_those_of_one_device():
    done = subprocess.run(
        [sys.executable, "-c", GAPS_PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    gaps = json.loads(done.stdout.splitlines()[-1])
    assert {name: gap for name, gap in gaps.items() if not gap < 1e-4} == {}
