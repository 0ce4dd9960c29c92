"""PS-ResNet-8 with the 3x3 head on the masks of scaled digits: background and ten digits, 6942 images to train on.

    python -m train.prepare --dataset=scaled_digits --data_dir=data
    python -m train --config=configs/segment_scaled_digits.py --config.data.dir=data --workdir=runs/segment

Class 0 is the background, class d + 1 is digit d. The background has 95 % of the pixels, so the mean IoU is informative
and the pixel accuracy is not. The head is the 3x3 baseline of PyConvSegNet's paper (Duta et al. 2020, supplement, table
6) on a backbone of output stride 8; its maps have 9 x 9 positions for 65 x 65 pixels.

Cost: four and a half minutes on two CPU cores, and half a minute for the test.
Expect: test mean IoU 0.67 or more (0.6809, 0.6732 and 0.6832 for the seeds 0, 1, 2).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = ConfigDict()
    config.data = {"source": "scaled_digits"}
    config.model = {
        "name": "seg_baseline_ps_resnet8",
        "kwargs": {
            "backbone_options": {
                "width": 16,
                "stem": {"kernel_size": 3, "strides": 2, "max_pool": False},
                "strides": (2, 2, 2),
                "zero_init_last": True,
            },
        },
    }
    config.task = {"name": "segmentation", "crop": (65, 65), "mirror": False}  # a flipped digit is a different sign
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 0.01,  # at its peak
        "warmup_epochs": 0.5,
        "schedule": "poly",
        "weight_decay": 0.02,
    }
    config.epochs = 10
    config.batch_size = 32
    return config
