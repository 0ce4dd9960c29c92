"""Every operator in one small ResNet, on digits of known scale.

    python -m train.compare --config=configs/compare_scaled_digits.py --workdir=runs/compare

Cost: 27 minutes on two CPU cores: 51 trainings and the three of the search's supernets, each on one core.
Expect: the table of configs/compare_scaled_digits.md; results vary within their spread.

All networks are a ResNet-8 of width 16 with a 3x3 stem of stride 2, so that the stages have maps of 16x16, 8x8 and 4x4
pixels. All are trained with the same settings on the same images in the same order. The settings were chosen for the
plain network only.
"""

from ml_collections import ConfigDict

from configs.base import scaled_digits


def get_config() -> ConfigDict:
    """Gives the config; every value can be set on the command line, ``--config.training.epochs=10``."""
    config = ConfigDict()
    config.seeds = (0, 1, 2)
    config.baseline = "plain"
    config.scale_edges = (1.0, 1.57, 2.45, 3.83, 6.0)  # equal intervals on a logarithmic axis
    config.timed_steps = 15
    training = config.training = scaled_digits()
    training.epochs = 3
    training.optimizer.warmup_epochs = 0.3
    training.data.threads = 1

    def network(name: str, title: str, conv: str, **arguments: object) -> dict[str, object]:
        return {"name": name, "title": title, "model": {"conv": conv, "conv_kwargs": arguments}}

    same_width = {"scale": 4, "kind": "auto"}  # slices keep their width: one slice where the width changes
    config.networks = (
        {"name": "plain"},
        network("dilated", "dilated by 2", "PSConv", pattern=(2,)),
        network("grouped", "4 groups", "PyConv", kernel_sizes=(3,), groups=(4,)),
        network("psconv", "PSConv {1,2,1,4}", "PSConv", pattern=(1, 2, 1, 4)),
        # The paper's table 3: the cyclic interval; 1 is the plain network.
        network("psconv_2", "PSConv {1,2}", "PSConv", pattern=(1, 2)),
        network("psconv_4", "PSConv {1,2,1,1}", "PSConv", pattern=(1, 2, 1, 1)),
        network("psconv_8", "PSConv {1,2,1,1,1,1,1,1}", "PSConv", pattern=(1, 2, 1, 1, 1, 1, 1, 1)),
        # Table 4: the pattern; {1,2,1,1} is above, and {1,2,1,2} is {1,2}.
        network("psconv_1411", "PSConv {1,4,1,1}", "PSConv", pattern=(1, 4, 1, 1)),
        # Table 5: the axes.
        network("psconv_in", "PSConv {1,2,1,4}, inputs only", "PSConv", pattern=(1, 2, 1, 4), vary="in"),
        network("psconv_out", "PSConv {1,2,1,4}, outputs only", "PSConv", pattern=(1, 2, 1, 4), vary="out"),
        network("pyconv", "PyConv 3, 5, 7, 9", "PyConv", kernel_sizes=(3, 5, 7, 9), groups=(1, 2, 4, 4)),
        {
            "name": "icconv",
            "title": "IC-Conv, searched",
            "model": {"conv": "ICConv"},
            "search": {"d_max": 2, "epochs": 2},
        },
        network("hetconv", "HetConv, 4 parts", "HetConv", parts=4),
        {
            "name": "octconv",
            "title": "OctConv, a quarter low",
            "model": {"name": "oct_resnet8", "kwargs": {**training.model.kwargs.to_dict(), "alpha": 0.25}},
        },
        {
            "name": "res2net",
            "title": "Res2Net, scale 4",
            "model": {
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
        },
        network("sis", "SIS", "SISConv", kind="basic"),
        network("acnet", "ACNet", "ACConv", kind="dataset"),
    )
    return config
