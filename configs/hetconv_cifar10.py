"""HetConv's VGG-16 on CIFAR-10 (HetConv, arXiv 1903.04120, table 2; its public code).

    python -m train --config=configs/hetconv_cifar10.py --workdir=runs/het_vgg16

The public code does not normalise the images. Other numbers of parts: --config.model.conv=HetConv
--config.model.conv_kwargs="{'parts': 32}"; the plain network: --config.model.name=vgg16_cifar.

Cost: 5.2 M parameters, 0.11 G multiply-accumulates an image, about 0.047 hours of one A100 (python -m train.cost).
Expect: accuracy 93.9 % with 4 parts, 94.1 % plain, 93.7 % with 32, 93.4 % with 64 (figures of the public code).
"""

from ml_collections import ConfigDict

from configs.base import cifar


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = cifar(10)
    config.model.name = "het_vgg16_cifar"
    config.data.pixel_mean = (0.0, 0.0, 0.0)
    config.data.pixel_std = (1.0, 1.0, 1.0)
    config.epochs = 330
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "steps"
    config.optimizer.schedule_epochs = (50.0, 140.0, 210.0, 240.0, 270.0, 300.0)
    config.optimizer.schedule_factor = 0.2
    return config
