"""Recorded ``tests/data/floor.json``: what the trainings of the recipes did at commit d8e5421.

It runs at that commit alone, whose modules it imports, on CPU; `tests.train.test_floor` compares later versions with
the file. In the repository:

    git worktree add --detach ../d8e5421 d8e5421
    cp tests/train/record_floor.py ../d8e5421/tests/train
    cd ../d8e5421
    JAX_PLATFORMS=cpu python -m tests.train.record_floor FLOOR_JSON FOLDER

where FOLDER holds the prepared scaled digits, or gets them. It takes ten minutes on a CPU.
"""

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

COMMIT = "d8e5421"
STEPS = 3  # of training, whose batches and losses are recorded
RATES = 100  # learning rates of a run, at most
WHOLE_STEPS_PER_EPOCH = 100  # for the schedules of whole recipes, whose data are not here


def digest(*arrays: np.ndarray) -> str:
    """A checksum of the bytes, the shapes and the dtypes of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{list(array.shape)}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def steps_of_rates(total_steps: int) -> list[int]:
    """The steps whose learning rates are recorded: all, or evenly spread ones and the last."""
    every = -(-total_steps // RATES)
    return sorted({*range(0, total_steps, every), total_steps - 1})


def _schedules(config: Any, steps_per_epoch: int) -> dict[str, list[float] | float]:
    from train.optim import learning_rate, weight_decay

    steps = steps_of_rates(config.epochs * steps_per_epoch)
    rate, decay = learning_rate(config, steps_per_epoch), weight_decay(config, steps_per_epoch)
    return {
        "learning_rate": [_short(rate(step)) for step in steps],
        "weight_decay": [_short(decay(step)) for step in steps] if callable(decay) else decay,
    }


def _short(value: Any) -> float:
    """A float32 in the nine digits that tell it from all others."""
    return float(f"{float(value):.9g}")


def _run(config: Any) -> dict[str, Any]:
    """Starts a training as train.loop does, and takes three steps of it."""
    import jax
    from train.mesh import create_mesh, to_devices, to_mesh
    from train.network import create_network, split_model
    from train.optim import create_optimiser
    from train.step import create_eval_step, create_state, create_train_step, evaluated

    from train.data import evaluation_batches, load_source, train_batches

    source = load_source(config)
    steps_per_epoch = round(len(source.splits["train"]) / config.batch_size)
    model, params, rest = split_model(create_network(config, source), source)
    optimiser, _ = create_optimiser(config, steps_per_epoch)
    mesh = create_mesh()
    state = create_state(*to_mesh((params, rest), mesh), optimiser, ema_decay=config.ema_decay)
    train_step = create_train_step(model, optimiser, config, mesh, len(source.classes))
    batches, reports = [], []
    for batch in train_batches(source, config, 0, STEPS):
        batches.append(digest(batch["image"], batch["label"]))
        state, report = train_step(state, to_devices(batch, mesh))
        reports.append({name: float(value) for name, value in jax.device_get(report).items()})
    (validation,) = itertools.islice(evaluation_batches(source, "validation", config), 1)
    found = create_eval_step(model, mesh)(*evaluated(state), to_devices(validation, mesh))
    return {
        "steps_per_epoch": steps_per_epoch,
        **_schedules(config, steps_per_epoch),
        "train_batches": batches,
        "validation_batch": digest(validation["image"], validation["label"]),
        "losses": [report["loss"] / report["images"] for report in reports],
        "accuracies": [report["correct"] / report["images"] for report in reports],
        "gradient_norms": [_short(report["gradient_norm"]) for report in reports],
        "validation_losses": [_short(loss) for loss in jax.device_get(found["loss"])[:8]],
    }


def main(argv: list[str]) -> int:
    from train.config import parse_command_line
    from train.prepare import prepare_once

    target, data_dir = map(Path, argv)
    prepare_once("scaled_digits", str(data_dir))

    def read(name: str, *flags: str) -> Any:
        return parse_command_line(["train", f"--config=configs/{name}", *flags], None, needs_workdir=False)[0]

    recipes = [path.name for path in sorted(Path("configs").glob("*.py"))]
    recipes = [name for name in recipes if not name.startswith(("edo_", "compare_"))]
    whole = {name: _schedules(read(name), WHOLE_STEPS_PER_EPOCH) for name in recipes}
    configs = {"ps_resnet_digits.py": read("ps_resnet_digits.py")}
    configs["scaled_digits.py"] = read("scaled_digits.py", f"--config.data_dir={data_dir}")
    configs |= {f"{name}:smoke": read(f"{name}:smoke") for name in recipes}
    runs = {}
    for name, config in configs.items():
        runs[name] = _run(config)
        print(name, runs[name]["losses"], flush=True)
    entries = [f"{json.dumps(name)}: {json.dumps(run)}" for name, run in runs.items()]
    schedules = [f"{json.dumps(name)}: {json.dumps(schedule)}" for name, schedule in whole.items()]
    text = (
        f'{{"commit": "{COMMIT}",\n"runs": {{\n' + ",\n".join(entries) + "},\n"
        f'"schedules": {{\n"steps_per_epoch": {WHOLE_STEPS_PER_EPOCH},\n' + ",\n".join(schedules) + "}}\n"
    )
    json.loads(text)
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}, {len(text) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
