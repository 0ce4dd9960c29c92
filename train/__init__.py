"""Training programs for the networks of msconv_jax: train, evaluate, predict.

Three commands, each explained by ``--help``::

    python -m train --config=configs/ps_resnet_digits.py --workdir=runs/digits
    python -m train.evaluate --workdir=runs/digits
    python -m train.predict --workdir=runs/digits IMAGE ...

Start reading at ``engine/loop.py``: it runs a training from beginning to end. Imports run one way: ``errors``,
``config``, ``data``, ``task``, ``page``, ``engine``, ``tasks``, and last the commands. ``edo``, ``compare`` and
``cost`` start programs of the package ``studies``.
"""
