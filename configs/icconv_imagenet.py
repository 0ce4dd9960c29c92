"""IC-Conv networks on ImageNet (IC-Conv, arXiv 2012.13587, section 4.1 and table 1).

    python -m train --config=configs/icconv_imagenet.py --workdir=runs/ic_resnet50

The dilations are those published for detection (kernel 9), because those of table 1 are not public. python -m train.edo
searches others. Other networks of the table: --config.model.name=ic_resnet18, ic_resnext101_32x4d or ic_mobilenetv2;
they have no published dilations, so all dilations up to d_max are equally frequent.

Cost: 25.6 M parameters, 4.09 G multiply-accumulates an image, about 14 hours of one A100 (python -m train.cost).
Expect: top-1 error 22.70 % (top-5 6.42 %) with dilations searched on ImageNet, ResNet-50 23.81 % (7.07 %).
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "ic_resnet50"
    config.epochs = 100
    config.batch_size = 1024
    config.optimizer.learning_rate = 0.4
    config.optimizer.schedule = "cosine"
    return config
