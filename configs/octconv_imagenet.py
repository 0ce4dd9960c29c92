"""OctConv networks on ImageNet (OctConv, arXiv 1904.05049, table 2; its public code for the ablations).

    python -m train --config=configs/octconv_imagenet.py --workdir=runs/oct_resnet50

Other fractions of low-resolution channels: --config.model.kwargs.alpha=0.25 (or 0.125, 0.5, 0.75). The paper's large
networks add label smoothing and, for ResNet-152, Mixup: --config.task.label_smoothing=0.1
--config.task.mixup_alpha=0.2.

Cost: 25.6 M parameters, 2.37 G multiply-accumulates an image, about 8.9 hours of one A100 (python -m train.cost).
Expect: top-1 error 22.7 % for alpha 0.5, 22.0 % for 0.25, 21.8 % for 0.125, 23.4 % for 0.75; ResNet-50 23.0 %.
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "oct_resnet50"
    config.model.kwargs = {"alpha": 0.5}
    config.epochs = 110
    config.batch_size = 1024
    config.optimizer.learning_rate = 0.4
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.schedule = "cosine"
    return config
