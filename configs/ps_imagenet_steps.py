"""PSConv networks on ImageNet with a step schedule, for detectors (PSConv, arXiv 2007.06191, section 4.2).

    python -m train --config=configs/ps_imagenet_steps.py --workdir=runs/ps_resnet50_steps

The paper trains its detectors' backbones with ResNet's step-wise schedule, for a fair comparison on COCO. It gives
neither epochs nor steps; this recipe has the usual 90 epochs with a tenth of the rate after 30 and 60.

Cost: 25.6 M parameters, 4.09 G multiply-accumulates an image, about 13 hours of one A100 (python -m train.cost).
Expect: no accuracy is published; detectors gain about 2.0 AP over plain backbones (table 7).
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "ps_resnet50"
    config.epochs = 90
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "steps"
    config.optimizer.schedule_epochs = (30.0, 60.0)
    return config
