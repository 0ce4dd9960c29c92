"""PSConv networks on ImageNet (PSConv, arXiv 2007.06191, section 4.1 and table 1).

    python -m train --config=configs/ps_imagenet.py --workdir=runs/ps_resnet50

Other networks of the table: --config.model.name=ps_resnet101, ps_resnext50_32x4d, ps_resnext101_32x4d, ps_se_resnet50
or ps_se_resnet101; the plain ones: resnet50, resnet101, resnext50_32x4d, ... The ablations of tables 3 to 5:
--config.model.conv=PSConv --config.model.conv_kwargs="{'pattern': (1, 2)}".

Cost: 25.6 M parameters, 4.09 G multiply-accumulates an image, about 17 hours of one A100 (python -m train.cost).
Expect: top-1 error 21.13 % (top-5 5.72 %) at the best epoch, the plain ResNet-50 22.85 % (6.53 %). Other networks of
the table, with the plain network in brackets: ResNet-101 19.95 (21.10), ResNeXt-50 20.38 (21.80), ResNeXt-101 19.50
(20.50), SE-ResNet-50 20.81 (22.19), SE-ResNet-101 19.79 (20.73).
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "ps_resnet50"
    config.epochs = 120
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    return config
