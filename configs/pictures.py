"""Your own pictures, one folder for each class.

    python -m train --config=configs/pictures.py --config.data.dir=pictures --workdir=runs/pictures

`pictures/cat/*.jpg`, `pictures/dog/*.png`, ... are split automatically; `pictures/train/cat/...` and
`pictures/validation/cat/...` keep your split. Unreadable files are left out and listed in `images.txt` of the run;
with --config.data.strict_images=true they are errors.

Cost: depends on your pictures: python -m train.cost --config=configs/pictures.py --config.data.dir=pictures
Expect: depends on your pictures; from scratch, a network of this size needs some hundreds of pictures a class.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.data.image_size=224``."""
    config = ConfigDict({"data": {}, "model": {}, "optimizer": {}, "task": {}})
    config.data.source = "folder"
    config.data.dir = "pictures"
    config.model.name = "resnet18"
    config.model.conv = "PSConv"
    config.data.image_size = 128
    config.data.augment = {
        "random_resized_crop": {"area": (0.25, 1.0), "ratio": (3 / 4, 4 / 3)},
        "flip": {"probability": 0.5},
        "trivial_augment": {},
    }
    config.epochs = 60
    config.batch_size = 64
    config.optimizer.learning_rate = 0.05
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.weight_decay = 5e-4
    config.task.label_smoothing = 0.1
    return config
