"""PyConv networks on ImageNet (PyConv, arXiv 2006.11538, section 5 and table 3; its public code).

    python -m train --config=configs/pyconv_imagenet.py --workdir=runs/pyconv_resnet50

Other networks of the table: --config.model.name=pyconv_resnet101, pyconv_resnet152, pyconvhg_resnet50, ... The larger
crop of the supplement's table 4: --config.task.eval_size=320.

Cost: 24.8 M parameters, 3.82 G multiply-accumulates an image, about 12 hours of one A100 (python -m train.cost).
Expect: top-1 error 22.12 % (top-5 6.20 %), ResNet-50 23.88 % (7.06 %); PyConvHGResNet-50 21.52, PyConvResNet-101
20.99, -152 20.48; at 320 pixels PyConvResNet-50 21.10.
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "pyconv_resnet50"
    config.epochs = 90
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "steps"
    config.optimizer.schedule_epochs = (30.0, 60.0, 80.0)
    config.optimizer.decay_all = True  # the public code decays every parameter
    return config
