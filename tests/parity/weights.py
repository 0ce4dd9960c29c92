"""Weights for fixtures without stored weights."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def recipe_state_dict(manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of the recording, generated from each tensor's name and shape."""
    state = {}
    for key, shape in manifest["state_dict"]:
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
        last = key.rsplit(".", 1)[-1]
        if last == "num_batches_tracked":
            continue
        if last == "running_mean":
            value = 0.1 * rng.standard_normal(shape)
        elif last == "running_var":
            value = 1.0 + 0.5 * rng.random(shape)
        elif last == "bias":
            value = 0.1 * rng.standard_normal(shape)
        elif len(shape) >= 2:
            value = rng.standard_normal(shape) * math.sqrt(2.0 / math.prod(shape[1:]))
        else:
            value = 1.0 + 0.1 * rng.standard_normal(shape)
            if key == "bn3.weight" or key.endswith(".bn3.weight"):
                value *= 0.2
            if key.endswith((".conv3.bn_h.weight", ".conv3.bn_l.weight")):  # Oct-ResNet
                value *= 0.1
        state[key] = value.astype(np.float32)
    return state
