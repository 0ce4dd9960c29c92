"""SIS-ResNeXt-29 on CIFAR-100 (SIS, table 1; the settings are those of Res2Net and ResNeXt).

    python -m train --config=configs/sis_cifar100.py --workdir=runs/sis_res2next29

The other kinds: --config.model.kwargs.sis=interactive1 (or interactive2, recurrent1, recurrent2). The baseline:
--config.model.name=res2next29_8cx25wx4s --config.model.kwargs="{}".

Cost: 28.9 M parameters, 4.75 G multiply-accumulates an image, about 1.9 hours of one A100 (python -m train.cost).
Expect: top-1 error 16.74 % (basic), 16.82 %, 16.79 %, 16.87 %, 16.85 % (the others in the order above), Res2NeXt-29
16.93 %, ResNeXt-29 17.90 %.
"""

from ml_collections import ConfigDict

from configs.base import cifar


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.seed=1``."""
    config = cifar(100)
    config.model.name = "sis_res2next29"
    config.model.kwargs = {"sis": "basic"}
    config.epochs = 300
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "steps"
    config.optimizer.schedule_epochs = (150.0, 225.0)
    return config
