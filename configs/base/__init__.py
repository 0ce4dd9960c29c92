"""Shared configs of the recipes of a data set: data, augmentation and evaluation."""

from ml_collections import ConfigDict


def _sections() -> ConfigDict:
    return ConfigDict({"data": {}, "model": {}, "optimizer": {}, "task": {}, "compute": {}})


def imagenet() -> ConfigDict:
    """ImageNet with the standard augmentation: a crop of 8 to 100 % of the area at 224 pixels, and a flip.

    The 50,000 validation images, at shorter side 256 and centre crop 224, are used for evaluation and, as in the
    papers, to choose the best epoch, because the test images have no public labels.
    """
    config = _sections()
    config.data.source = "imagenet2012"
    config.data.splits = {"train": "train", "validation": "validation", "test": "validation"}
    config.data.image_size = 224
    config.data.augment = {
        "random_resized_crop": {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)},
        "flip": {"probability": 0.5},
    }
    config.data.threads = 16
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.checkpoint_every = 1000  # steps, besides the checkpoint after each epoch
    config.seed = 0
    return config


def cifar(classes: int) -> ConfigDict:
    """CIFAR-10 or CIFAR-100 with the standard augmentation: a crop of 32 pixels after padding by 4, and a flip.

    As in the papers there is no validation split: the best epoch is chosen on the 10,000 test images, which biases the
    result upwards. For an unbiased result set ``config.data.splits.train="train[:90%]"`` and
    ``config.data.splits.validation="train[90%:]"``.
    """
    config = _sections()
    config.data.source = f"cifar{classes}"
    config.data.splits = {"train": "train", "validation": "test", "test": "test"}
    config.data.augment = {"pad_crop": {"padding": 4}, "flip": {"probability": 0.5}}
    config.data.threads = 4
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.batch_size = 128
    config.seed = 0
    return config


def scaled_digits() -> ConfigDict:
    """Scaled digits, with a ResNet-8 of a 3x3 stem of stride 2: its stages have maps of 16x16, 8x8 and 4x4 pixels."""
    config = _sections()
    config.data.source = "scaled_digits"
    config.model.name = "resnet8"
    config.model.kwargs = {
        "width": 16,
        "stem": {"kernel_size": 3, "strides": 2, "max_pool": False},
        "strides": (2, 2, 2),
        "zero_init_last": True,
    }
    config.batch_size = 32
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.01  # at its peak
    config.optimizer.weight_decay = 0.02
    return config
