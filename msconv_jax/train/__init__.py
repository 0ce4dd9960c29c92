"""The training programs without a clone: ``python -m msconv_jax.train`` is ``python -m train`` in a clone.

    python -m msconv_jax.train --config=configs/ps_resnet_digits.py --workdir=runs/digits
    python -m msconv_jax.train.evaluate --workdir=runs/digits
    python -m msconv_jax.train.predict --workdir=runs/digits IMAGE ...

Likewise `prepare`, `edo`, `compare` and `cost`; ``--help`` explains each. The configs are installed too: a config path
that is missing from the current folder is looked up among them. The programs need
``pip install 'msconv_jax[train]'``.
"""

import os
import pathlib
import runpy
import sys

_PACKAGE = pathlib.Path(__file__).parents[1]
_IN_WHEEL = _PACKAGE / "_programs"
PROGRAMS = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent  # the folder of train, studies and configs


def start(module: str) -> None:
    """Runs a program as ``python -m`` would in a clone, and ends the process if a package is missing.

    Args:
        module: the program's module, such as "train.evaluate".

    Raises:
        SystemExit: at the end of the program, with its exit status; with status 1 if a package is missing.
    """
    sys.path.insert(0, str(PROGRAMS))  # before the current folder, which may contain a train.py
    os.environ["MSCONV_JAX_PREFIX"] = "msconv_jax."  # prefix of the commands that the programs print
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "msconv_jax", "train", "studies", "configs"):
            raise  # a bug
        sys.exit(
            f"error: training needs more packages (no module named {error.name!r}); "
            "install them with pip install 'msconv_jax[train]'"
        )
