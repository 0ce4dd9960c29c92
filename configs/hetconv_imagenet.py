"""HetConv's ResNet-50 on ImageNet (HetConv, arXiv 1903.04120, table 7).

    python -m train --config=configs/hetconv_imagenet.py --workdir=runs/het_resnet50

The paper gives no recipe for ImageNet; this is the usual one of a ResNet. The VGG-16 of table 5:
--config.model.name=het_vgg16 --config.optimizer.learning_rate=0.01 (it has no shortcuts, and its dense layers need a
small rate).

Cost: 18.0 M parameters, 2.86 G multiply-accumulates an image, about 8.8 hours of one A100 (python -m train.cost).
Expect: top-1 error 23.84 % with 4 parts, the plain network 23.86 %; VGG-16 28.8 % (28.7 %).
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "het_resnet50"
    config.epochs = 90
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "steps"
    config.optimizer.schedule_epochs = (30.0, 60.0)
    return config
