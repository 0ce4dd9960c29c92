"""A strong recipe for any network on ImageNet: TrivialAugment, Mixup and CutMix, label smoothing, random erasing, EMA.

    python -m train --config=configs/modern_imagenet.py --workdir=runs/modern_ps_resnet50

The settings are those of torchvision's second weights ("How to Train State-Of-The-Art Models Using TorchVision's
Latest Primitives", 2021). The baseline is its ResNet-50: --config.model.name=resnet50. Shorter runs:
--config.epochs=300 or 100. With LAMB, as in "ResNet strikes back" (arXiv 2110.00476): --config.optimizer.name=lamb
--config.optimizer.learning_rate=5e-3 --config.optimizer.weight_decay=0.01 --config.batch_size=2048.

Cost: 25.6 M parameters, 2.61 G multiply-accumulates an image, about 54 hours of one A100 (python -m train.cost).
Expect: torchvision's ResNet-50 has top-1 error 19.14 % (top-5 4.57 %) after 600 epochs; no PSConv result is published.
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "ps_resnet50"
    config.epochs = 600
    config.batch_size = 1024
    config.optimizer.learning_rate = 0.5
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 2e-5
    config.data.image_size = 176  # smaller than in evaluation, because training crops enlarge objects
    config.task.eval_size = 224
    config.task.eval_resize = 232
    config.data.augment.trivial_augment = {}
    config.data.augment.random_erasing = {"probability": 0.1}
    config.task.mixup_alpha = 0.2
    config.task.cutmix_alpha = 1.0
    config.task.label_smoothing = 0.1
    config.optimizer.ema_decay = 0.9998
    config.compute.dtype = "bfloat16"
    return config
