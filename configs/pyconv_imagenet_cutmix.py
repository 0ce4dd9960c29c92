"""PyConv networks on ImageNet with CutMix (PyConv, arXiv 2006.11538, supplement, table 4).

    python -m train --config=configs/pyconv_imagenet_cutmix.py --workdir=runs/pyconv_resnet50_cutmix

The paper states CutMix, 300 epochs, a cosine schedule, batches of 1024 and mixed precision. CutMix's distribution
(uniform, on every batch) and the weight decay are the usual ones. bfloat16 replaces the paper's float16.

Cost: 24.8 M parameters, 3.82 G multiply-accumulates an image, about 39 hours of one A100 (python -m train.cost).
Expect: top-1 error 20.56 % (top-5 5.31 %), with --config.task.eval_size=320 19.41 % (4.75 %); PyConvResNet-101 19.42,
at 320 pixels 18.51.
"""

from ml_collections import ConfigDict

from configs.base import imagenet


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = imagenet()
    config.model.name = "pyconv_resnet50"
    config.epochs = 300
    config.batch_size = 1024
    config.optimizer.learning_rate = 0.4
    config.optimizer.schedule = "cosine"
    config.optimizer.decay_all = True
    config.task.cutmix_alpha = 1.0
    config.compute.dtype = "bfloat16"
    return config
