"""Training programs for the networks of msconv_jax: train, evaluate, predict.

Three commands, each explained by ``--help``::

    python -m train --config=configs/ps_resnet_digits.py --workdir=runs/digits
    python -m train.evaluate --workdir=runs/digits
    python -m train.predict --workdir=runs/digits IMAGE ...

Start reading at ``loop.py``: it tells the whole story in order and names the file behind each
chapter. Imports run one way: ``errors``, ``settings`` and ``config`` at the bottom; then ``data``, ``mesh``,
``network``, ``optim``, ``mixing``, ``step``, ``guard``, ``checkpoint``, ``metrics`` and ``profiling``; then
``evaluate``, which puts them together for a trained network; then ``predict`` and ``loop``.
"""
