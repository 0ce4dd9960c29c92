"""PyConvSegNet on your own pictures and masks (PyConv, arXiv 2006.11538, section 5; its public code).

    python -m train --config=configs/masks.py --config.data.dir=photos --workdir=runs/masks

The folder has pictures, photos/images/NAME.jpg or .png, and masks with the classes of their pixels,
photos/masks/NAME.png, grey or with a palette. Classes are numbered from 0, and 255 is ignored. photos/classes.txt lists
the class names, one on each line. Unusable files are left out and listed in images.txt of the run.

The settings are those of ADE20K: SGD with the rate 0.01, ten times as much for the heads, and polynomial decay of power
0.9. Other networks are --config.model.name=seg_baseline_resnet50, pyconv_segnet_pyconv_resnet50, ... For small pictures
set a crop whose sides are 1 more than a multiple of 8, --config.task.crop="(65, 65)".

Cost: depends on pictures and network; with ResNet-50, 116 G multiply-accumulates a picture of 473 x 473.
Expect: on ADE20K a mean IoU of 41.54 % (the paper's supplement, table 6); not run by this project.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = ConfigDict()
    config.data = {"source": "masks", "augment": {"random_scale": {}, "random_rotation": {}, "blur": {}, "flip": {}}}
    config.model = {"name": "pyconv_segnet_resnet50"}
    config.task = {"name": "segmentation", "crop": (473, 473)}
    config.optimizer = {
        "learning_rate": 0.01,
        "schedule": "poly",
        "weight_decay": 1e-4,
        "decay_all": True,
        "multipliers": {"head": 10.0, "classifier": 10.0, "auxiliary": 10.0},
    }
    config.epochs = 100
    config.batch_size = 16
    return config
