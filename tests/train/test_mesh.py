import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.train.helpers import run_python
from train.engine.mesh import create_mesh, replicate, shard_arrays, state_shardings
from train.errors import UserError


def test_one_device_holds_everything():
    mesh = create_mesh()
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.shape == {"data": jax.device_count(), "fsdp": 1}
    tree = {"kernel": np.ones((64, 64), np.float32), "step": np.int32(3)}
    assert state_shardings(tree, mesh) == {"kernel": replicate(mesh), "step": replicate(mesh)}
    placed = shard_arrays(tree, mesh)
    assert int(placed["step"]) == 3
    assert placed["kernel"].sharding == replicate(mesh)


def test_shards_must_divide_the_devices():
    too_many = jax.device_count() + 1
    with pytest.raises(UserError, match=f"config.compute.shards is {too_many} but must divide the number of devices"):
        create_mesh(too_many)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), PartitionSpec()),
        ((1020,), PartitionSpec()),  # too small to shard
        ((1024,), PartitionSpec("fsdp")),
        ((3, 3, 64, 128), PartitionSpec(None, None, None, "fsdp")),
        ((3, 3, 128, 64), PartitionSpec(None, None, "fsdp")),
        ((3, 3, 64, 64), PartitionSpec(None, None, None, "fsdp")),  # the last one of a tie
        ((512, 1001), PartitionSpec("fsdp")),  # 1001 does not divide by 4
        ((1001, 33), PartitionSpec()),
    ],
)
def test_the_shape_alone_decides_how_an_array_lies(shape, spec):
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    assert state_shardings([leaf], mesh)[0].spec == spec


SHARDED_STEPS = """
import json, jax, numpy as np
from tests.train.helpers import register_tiny, start, tiny
from train.data import load_source, train_batches
register_tiny()
optimizer = {"accumulation_steps": 2, "ema_decay": 0.9}
answers = []
for shards in (1, 2, 4):
    config = tiny({"compute.shards": shards, "optimizer": optimizer, "task.mixup_alpha": 0.2})
    state, train_step, batches, _, task = start(config, steps=3)
    losses = []
    for batch in batches:
        state, report = train_step(state, batch)
        losses.append(float(report["loss"]))
    large = state.params, state.opt_state, state.average
    held = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.nbytes, large)
    whole = jax.tree.map(lambda leaf: leaf.nbytes, large)
    *_, rows = train_batches(load_source(config), config, task.transform(training=True), 0, 3)
    shards_of_batch = sorted(batch["image"].addressable_shards, key=lambda s: s.device.id)
    blocks = [np.asarray(s.data) for s in shards_of_batch]
    answers.append({
        "losses": losses,
        "compiled": train_step._cache_size(),
        "held": sum(jax.tree.leaves(held)),
        "whole": sum(jax.tree.leaves(whole)),
        "heads": [a.addressable_shards[0].data.shape for a in jax.tree.leaves(state) if a.shape == (128, 10)],
        "in order": bool(np.array_equal(np.concatenate(blocks), rows["image"])),
    })
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_divided_parameters_train_like_whole_ones():
    run = run_python("-c", SHARDED_STEPS, JAX_NUM_CPU_DEVICES="4")
    assert run.returncode == 0, run.stderr
    answers = json.loads(run.stdout)
    head = 3 * 4 * 1280  # bytes of the only sharded array, with its momentum and its average
    for shards, answer in zip((1, 2, 4), answers, strict=True):
        np.testing.assert_allclose(answer["losses"], answers[0]["losses"], rtol=1e-5)
        assert answer["losses"][0] != answer["losses"][1]
        assert answer["compiled"] == 1
        assert answer["in order"]
        assert answer["heads"] == [[128 // shards, 10]] * 3
        assert answer["held"] == answer["whole"] - head + head // shards


COLLECTIVES = """
import json, re, jax
from tests.train.helpers import start, tiny
jax.config.update("jax_disable_most_optimizations", True)  # of single devices; what they exchange stays the same
config = tiny({
    "compute.shards": 2,
    "batch_size": 64,
    "model": {"name": "resnet8", "kwargs": {"width": 16}},
    "optimizer": {"accumulation_steps": 2, "ema_decay": 0.9, "gradient_clip_norm": 1.0},
    "task.mixup_alpha": 0.2,
})
state, train_step, (batch,), *_ = start(config, steps=1)
program = train_step.lower(state, batch).compile().as_text()
kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
moved = [
    (kind, [int(n) for n in lengths.split(",") if n])
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\\(", program)
    for lengths in re.findall(r"[a-z0-9]+\\[([0-9,]*)\\]", result)
]
leaves = jax.tree.leaves(state.params)
divided = [leaf.shape for leaf in leaves if leaf.sharding.spec]
print(json.dumps({"moved": moved, "divided": divided, "shapes": [leaf.shape for leaf in leaves]}))
"""


@pytest.mark.slow
def test_devices_exchange_parameters_and_sums_but_no_images():
    run = run_python("-c", COLLECTIVES, JAX_NUM_CPU_DEVICES="4")
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert len(answer["divided"]) > 5
    gather = [shape for kind, shape in answer["moved"] if kind == "all-gather"]
    assert sorted(gather) == sorted(answer["divided"])  # each once a step, not once per part of the batch
    gradients = [sorted(shape) for shape in answer["shapes"]]  # XLA may compute them transposed
    for kind, shape in answer["moved"]:
        if kind != "all-gather":
            assert kind in ("all-reduce", "reduce-scatter")
            assert sorted(shape) in gradients or len(shape) < 2  # sums over the batch
