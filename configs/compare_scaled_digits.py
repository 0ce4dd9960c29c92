"""Every operator in one small ResNet, on digits of known scale.

    python -m train.compare --config=configs/compare_scaled_digits.py --workdir=runs/compare

Cost: 27 minutes on two CPU cores: 51 trainings and the three of the search's supernets, each on one core.
Expect: the table and what it says, configs/compare_scaled_digits.md; the figures move within their spread.

All networks are a ResNet-8 of the width 16 behind a 3x3 stem of stride 2, so that the stages see maps of 16x16, 8x8 and
4x4 pixels, and are trained in the same way on the same images in the same order. The settings were chosen with the
plain network alone.
"""

from ml_collections import ConfigDict

from configs.base import scaled_digits


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.training.epochs=10``."""
    config = ConfigDict()
    config.seeds = (0, 1, 2)
    config.baseline = "plain"
    config.scale_edges = (1.0, 1.57, 2.45, 3.83, 6.0)  # equal parts of a logarithmic axis
    config.timed_steps = 15
    training = config.training = scaled_digits()
    training.epochs = 3
    training.warmup_epochs = 0.3
    training.data_threads = 1

    def psconv(name: str, title: str, **arguments: object) -> dict[str, object]:
        return {"name": name, "title": f"PSConv {title}", "conv": "PSConv", "conv_kwargs": arguments}

    same_width = {"scale": 4, "kind": "auto"}  # slices keep their width: where it changes there is one slice
    config.networks = (
        {"name": "plain"},
        {"name": "dilated", "title": "dilated by 2", "conv": "PSConv", "conv_kwargs": {"pattern": (2,)}},
        {
            "name": "grouped",
            "title": "4 groups",
            "conv": "PyConv",
            "conv_kwargs": {"kernel_sizes": (3,), "groups": (4,)},
        },
        psconv("psconv", "{1,2,1,4}", pattern=(1, 2, 1, 4)),
        # The paper's table 3: the cyclic interval; 1 is the plain network.
        psconv("psconv_2", "{1,2}", pattern=(1, 2)),
        psconv("psconv_4", "{1,2,1,1}", pattern=(1, 2, 1, 1)),
        psconv("psconv_8", "{1,2,1,1,1,1,1,1}", pattern=(1, 2, 1, 1, 1, 1, 1, 1)),
        # Table 4: the pattern; {1,2,1,1} is above, and {1,2,1,2} is {1,2}.
        psconv("psconv_1411", "{1,4,1,1}", pattern=(1, 4, 1, 1)),
        # Table 5: the axes.
        psconv("psconv_in", "{1,2,1,4}, inputs only", pattern=(1, 2, 1, 4), vary="in"),
        psconv("psconv_out", "{1,2,1,4}, outputs only", pattern=(1, 2, 1, 4), vary="out"),
        {
            "name": "pyconv",
            "title": "PyConv 3, 5, 7, 9",
            "conv": "PyConv",
            "conv_kwargs": {"kernel_sizes": (3, 5, 7, 9), "groups": (1, 2, 4, 4)},
        },
        {"name": "icconv", "title": "IC-Conv, searched", "conv": "ICConv", "search": {"d_max": 2, "epochs": 2}},
        {"name": "hetconv", "title": "HetConv, 4 parts", "conv": "HetConv", "conv_kwargs": {"parts": 4}},
        {
            "name": "octconv",
            "title": "OctConv, a quarter low",
            "model": "oct_resnet8",
            "model_kwargs": {**training.model_kwargs.to_dict(), "alpha": 0.25},
        },
        {
            "name": "res2net",
            "title": "Res2Net, scale 4",
            "conv": "Res2Conv",
            "convs": {
                "layer1.0.conv1": same_width,
                "layer1.0.conv2": same_width,
                "layer2.0.conv1": {"scale": 1},
                "layer2.0.conv2": same_width,
                "layer3.0.conv1": {"scale": 1},
                "layer3.0.conv2": same_width,
            },
        },
        {"name": "sis", "title": "SIS", "conv": "SISConv", "conv_kwargs": {"kind": "basic"}},
        {"name": "acnet", "title": "ACNet", "conv": "ACConv", "conv_kwargs": {"kind": "dataset"}},
    )
    return config
