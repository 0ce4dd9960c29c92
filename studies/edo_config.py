"""The settings of a search of dilations, `studies.edo`."""

from typing import Annotated, ClassVar

import pydantic
from pydantic import Field

from msconv_jax import edo
from msconv_jax.edo.selection import Axes, Per
from train.config import Config, Settings, update_config


def _different(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed occurs twice")
    return seeds


Seeds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]],
    pydantic.AfterValidator(_different),
    Field(min_length=1, description="a list of different whole numbers from 0 to 2**31 - 1"),
]


class SearchConfig(Settings):
    """The settings of a search; `training` holds those of the plain network, which all trainings share."""

    file: ClassVar[str] = "search.json"
    changeable: ClassVar[tuple[str, ...]] = tuple(f"training.{name}" for name in Config.changeable)

    seeds: Seeds
    d_max: int = Field(ge=2, description="the largest dilation, a whole number of at least 2")
    objective: edo.Objective = Field(description="one of 'sum', 'same', 'abs'")
    per: Per = Field(description="one of 'filter', 'layer'")
    axes: Axes = Field(description="one of 'both', 'tied'")
    training: Config

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        for name in ("conv", "conv_kwargs", "convs"):
            if value := getattr(self.training.model, name):
                raise ValueError(
                    f"config.training.model.{name} is {value!r} but must be {type(value)()!r}: the search replaces "
                    "the convolutions of the network"
                )
        task = self.training.task.name
        if task != "classification":
            raise ValueError(
                f"config.training.task.name is {task!r} but must be 'classification', because the search compares "
                "test accuracies; msconv_jax.edo searches the dilations of any network"
            )
        return self

    def plain(self, seed: int) -> Config:
        """Returns the training of the plain network."""
        return update_config(self.training, {"seed": seed})

    def supernet(self, seed: int) -> Config:
        """Returns the training of the supernet."""
        return update_config(
            self.plain(seed), {"model": {"conv": "SupernetConv", "conv_kwargs": {"d_max": self.d_max}}}
        )
