"""Fixtures of dense tasks; a fixture's family selects its check."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from tests.families import FAMILIES
from tests.parity import dense_networks, segmentation_data
from tests.parity.modules import check_module
from tests.parity.results import MODULE_TOLERANCE, Result, worst

ON_THE_HOST = segmentation_data.FAMILIES
NETWORKS = dense_networks.FAMILIES


def is_built(path: Path) -> bool:
    """Whether the library supports a fixture's family."""
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["meta"]))["family"] in {**ON_THE_HOST, **NETWORKS, **FAMILIES}


def check_dense(path: Path) -> Result:
    """Checks one fixture from its family and constructor arguments."""
    name = f"{path.parent.name}/{path.stem}"
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    meta = json.loads(str(data.pop("meta")))
    family = meta["family"]
    if family in ON_THE_HOST:
        return worst(name, ON_THE_HOST[family]({**meta, **meta["ctor"]}, data), MODULE_TOLERANCE)
    if family in NETWORKS:
        return dense_networks.check_network(name, meta, data)
    if family in FAMILIES:
        return check_module(name, meta, data)
    return Result(name, math.nan, "", MODULE_TOLERANCE, f"{family!r} is not built yet")
