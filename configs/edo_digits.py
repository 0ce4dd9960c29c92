"""The dilation search (EDO) for a ResNet-8 on scikit-learn's handwritten digits.

python -m train.edo --config=configs/edo_digits.py --workdir=runs/edo_digits

Cost: six minutes on two CPU cores: four trainings, one of them twice as long, for each of three seeds.
Expect: test accuracies of 0.98 to 1.0 for the plain network and the network found, equal within the spread of the
seeds; the table is in configs/edo_digits.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.training.epochs=10``."""
    config = ConfigDict()
    config.seeds = (0, 1, 2)
    config.d_max = 2  # maps are 8, 4 and 2 pixels wide
    config.objective = "sum"
    config.per = "filter"
    config.axes = "both"
    training = config.training = ConfigDict({"data": {}, "model": {}, "optimizer": {}, "task": {}})
    training.seed = 0  # replaced by each of the seeds above
    training.data.source = "digits"
    training.model.name = "resnet8"
    training.model.kwargs = {"width": 16}
    training.model.conv = ""
    training.model.conv_kwargs = {}
    training.model.convs = {}
    training.data.augment = {"warp": {"shift": 0.75, "rotation": 12.0, "scale": 0.1}}  # pixels, degrees, fraction
    training.epochs = 20
    training.batch_size = 64
    training.optimizer.learning_rate = 0.1  # at its peak
    training.optimizer.warmup_epochs = 2.0
    training.optimizer.momentum = 0.9
    training.optimizer.nesterov = True
    training.optimizer.weight_decay = 5e-3  # of kernels only
    training.task.label_smoothing = 0.1
    training.checkpoint_every = 0  # steps between checkpoints within an epoch; 0: none
    training.data.threads = 2
    return config
