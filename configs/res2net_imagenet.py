"""Res2Net on ImageNet (Res2Net, arXiv 1904.01169, table 1).

    python -m train --config=configs/res2net_imagenet.py --workdir=runs/res2net50

The paper states 100 epochs; rate, steps, batch and decay are the usual ones of a ResNet. Other networks of the table:
--config.model.name=res2next50, res2net_dla60, res2next_dla60, se_res2net50, res2net101_26w_4s.

Cost: 25.7 M parameters, 4.26 G multiply-accumulates an image, about 15 hours of one A100 (python -m train.cost).
Expect: top-1 error 22.01 % (top-5 6.15 %), ResNet-50 23.85 % (7.13 %); Res2NeXt-50 21.76, Res2Net-DLA-60 21.53,
SE-Res2Net-50 21.56, Res2Net-101 20.81.
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "res2net50_26w_4s"
    config.epochs = 100
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "steps"
    config.optimizer.schedule_epochs = (30.0, 60.0, 90.0)
    return config
