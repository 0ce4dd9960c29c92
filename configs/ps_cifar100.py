"""PSConv ResNeXt-29 on CIFAR-100 (PSConv, arXiv 2007.06191, table 6; ResNeXt, arXiv 1611.05431, section 5.3).

    python -m train --config=configs/ps_cifar100.py --workdir=runs/ps_resnext29

The wider network: --config.model.name=ps_resnext29_16x64d; the plain ones: resnext29_8x64d, resnext29_16x64d. The paper
gives the mean of five runs: --config.seed=0 to 4.

Cost: 34.5 M parameters, 5.39 G multiply-accumulates an image, about 2.2 hours of one A100 (python -m train.cost).
Expect: top-1 error 17.14 +- 0.29 %, ResNeXt-29 8x64d 18.07 +- 0.13 %; 16x64d 16.53 +- 0.35 %, plain 17.54 +- 0.09
%.
"""

from ml_collections import ConfigDict

from configs.base import cifar


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = cifar(100)
    config.model.name = "ps_resnext29_8x64d"
    config.epochs = 300
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "steps"
    config.optimizer.schedule_epochs = (150.0, 225.0)
    return config
