"""ACNet on ImageNet (ACNet, arXiv 1904.03579, table 1; its public code).

    python -m train --config=configs/acnet_imagenet.py --workdir=runs/ac_resnet50

The public code multiplies the weight decay by 1.2 every 150,000 steps for the dataset-aware network. It is constant for
the pixel-aware one: --config.model.name=ac_pixel_resnet50 --config.optimizer.decay_growth=1
--config.optimizer.decay_growth_epochs=0. The public code resizes crops by cubic interpolation and has channels in the
order blue, green, red; this recipe has linear interpolation and red, green, blue.

Cost: 29.4 M parameters, 4.30 G multiply-accumulates an image, about 18 hours of one A100 (python -m train.cost).
Expect: top-1 error 22.5 % (29.4 M parameters), pixel-aware 22.5 % (31.9 M); ResNet-50 23.6 %.
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "ac_resnet50"
    config.data.augment.color_jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
    config.data.augment.lighting = {"std": 0.1}
    config.epochs = 120
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.nesterov = True
    config.optimizer.schedule = "steps"
    config.optimizer.schedule_epochs = (30.0, 60.0, 90.0, 105.0)
    config.optimizer.decay_growth = 1.2
    config.optimizer.decay_growth_epochs = 30.0  # of 5,000 steps
    return config
