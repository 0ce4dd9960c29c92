"""Training programs for the networks of msconv_jax: train, evaluate, predict.

Three commands, each explained by ``--help``::

    python -m train --config=configs/ps_resnet_digits.py --workdir=runs/digits
    python -m train.evaluate --workdir=runs/digits
    python -m train.predict --workdir=runs/digits IMAGE ...

Start reading at ``engine/loop.py``: it tells the whole story in order and names the file behind each chapter. Imports
run one way: ``errors``, ``config``, ``data``, ``task``, ``page``, ``engine``, ``tasks``, and at last the commands.
``edo``, ``compare`` and ``cost`` start the programs of the package ``studies`` beside this one.
"""
