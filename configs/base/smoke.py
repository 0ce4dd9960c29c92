"""Shrinks a recipe to a run of seconds: ``--config=configs/FILE.py:smoke``.

Operator, optimiser, schedule, augmentation, mixing and precision stay. The data (some 200 pictures made from digits),
the images, the network, the number of epochs and all settings in epochs shrink.
"""

from collections.abc import Iterator
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from msconv_jax.models.registry import create_model, model_entry
from msconv_jax.models.resnet import Stem

EPOCHS = 2
BATCH_SIZE = 32
SIZE = 32  # pixels


def smoke(config: ConfigDict) -> ConfigDict:
    """Returns the shrunken recipe; `config` stays unchanged.

    Raises:
        ValueError: if no small network of this kind can be built.
    """
    return ConfigDict(_small(config.to_dict()))


def _small(config: dict[str, Any]) -> dict[str, Any]:
    if "networks" in config:  # a comparison: two networks, no scales, which the small data lack
        # The baseline, and a network with a search if there is one, which covers the most code.
        first = sorted(config["networks"], key=lambda own: (own["name"] != config["baseline"], "search" not in own))
        few = {"networks": tuple(first[:2]), "scale_edges": (), "timed_steps": 2}
        return {**config, **few, "training": _small(config["training"]), "seeds": tuple(config["seeds"])[:1]}
    if "training" in config:  # a search: shrink its training
        return {**config, "training": _small(config["training"]), "seeds": tuple(config["seeds"])[:1]}
    data, model, optimizer, task = (config.get(name, {}) for name in ("data", "model", "optimizer", "task"))
    share = EPOCHS / config["epochs"]
    batch_size = min(BATCH_SIZE, config["batch_size"])
    rate = optimizer["learning_rate"] * batch_size / config["batch_size"]  # proportional to the batch size
    small = {
        **config,
        "epochs": EPOCHS,
        "batch_size": batch_size,
        "checkpoint_every": 0,
        "data": {**data, "threads": 2},
        "optimizer": {
            **optimizer,
            **{name: optimizer.get(name, 0.0) * share for name in ("warmup_epochs", "decay_growth_epochs")},
            "schedule_epochs": tuple(epoch * share for epoch in optimizer.get("schedule_epochs", ())),
            "learning_rate": rate,
        },
    }
    if data["source"] == "digits":
        return small
    is_sized = "random_resized_crop" not in data.get("augment", {})  # data of varying sizes need this crop
    source, size = ("miniature32", 0) if is_sized else ("miniature", SIZE)
    if task.get("name") == "segmentation":
        source, size, small["task"] = "miniature32", 0, {**task, "crop": (SIZE + 1, SIZE + 1)}
    else:
        small["task"] = {**task, "eval_size": 0, "eval_resize": 0}
    small["data"] |= {"source": source, "image_size": size, "dir": "", "splits": {}}
    small["model"] = {**model, "kwargs": _small_arguments(model["name"], model.get("kwargs", {}))}
    return small


def _small_arguments(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Makes the arguments of a small model: one block in each stage, and the narrowest possible width."""
    entry = model_entry(model)
    small: dict[str, Any] = {}
    if "layers" in entry.keywords:
        small["layers"] = (1,) * len(arguments.get("layers", entry.config["layers"]))
    if "patterns" in entry.keywords:
        small["patterns"] = "even"  # published ones fit the full size only
    if "input_size" in entry.keywords:
        small["input_size"] = (SIZE, SIZE)
    if "backbone_options" in entry.keywords:
        backbone, options = arguments.get("backbone", entry.config["backbone"]), arguments.get("backbone_options", {})
        small |= {"backbone_options": _small_arguments(backbone, options), "features": 64}
    for widths in _widths(entry.keywords):
        own = _with_stems({**arguments, **small, **widths})
        try:
            nnx.eval_shape(lambda own=own: create_model(model, rngs=nnx.Rngs(0), **own))
        except ValueError:  # too narrow for its groups or its pattern
            continue
        return {**arguments, **small, **widths}
    raise ValueError(f"no small {model} can be built; give config.model.kwargs by hand")


def _with_stems(arguments: dict[str, Any]) -> dict[str, Any]:
    """Converts the dictionary of each stem to a `Stem`."""
    return {
        name: (Stem(**value) if name == "stem" else _with_stems(value)) if isinstance(value, dict) else value
        for name, value in arguments.items()
    }


def _widths(keywords: Any) -> Iterator[dict[str, Any]]:
    if "width" in keywords:
        yield {"width": 8}
        if "base_width" in keywords:
            yield {"width": 8, "base_width": 32}  # wider groups, which some operators split
        yield from ({"width": width} for width in (16, 32))
    if "width_mult" in keywords:
        yield from ({"width_mult": share} for share in (0.25, 0.5))
    yield {}
