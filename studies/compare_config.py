"""The settings of a comparison, `studies.compare`."""

import itertools
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field

from studies.edo_config import SearchConfig, Seeds
from train.config import Config, Settings, merge_changes, update_config, validate_config
from train.errors import UserError, suggest

_OTHER_FOLDERS = ("data", "compiled")
_SEARCH = {"d_max": 2, "objective": "sum", "per": "filter", "axes": "both"}
_PREPARED = "scaled_digits"  # the data set that is prepared in the folder of a comparison


def _named(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for network in networks:
        if not str(network.get("name", "")).isidentifier() or not isinstance(network.get("search", {}), dict):
            raise ValueError("a network has no name, or a search that is no dictionary")
    return networks


def _rising(edges: list[float]) -> list[float]:
    if len(edges) == 1 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError("one edge, or edges that do not rise")
    return edges


class CompareConfig(Settings):
    """The settings of a comparison.

    `training` holds the settings that all trainings share. A network of `networks` has a "name" for folders,
    optionally a "title" for the table, and changes of the shared settings: {"model": {"conv": "PSConv"}}. A "search"
    finds the dilations of an "ICConv": a dictionary that may set "d_max", "objective", "per", "axes", and the
    supernet's "epochs".
    """

    file: ClassVar[str] = "compare.json"
    changeable: ClassVar[tuple[str, ...]] = SearchConfig.changeable

    seeds: Seeds
    networks: Annotated[list[dict[str, Any]], pydantic.AfterValidator(_named)] = Field(
        min_length=1,
        description='a list of dictionaries, each with a "name" of letters, digits and _, and a "search" a dictionary',
    )
    baseline: str = Field(min_length=1, description="the name of a network of the comparison")
    scale_edges: Annotated[list[float], pydantic.AfterValidator(_rising)] = Field(
        description="a list of rising numbers, the scales between which accuracies are compared, or [] for none"
    )
    timed_steps: int = Field(ge=1, description="a whole number of at least 1: steps that are timed")
    training: Config

    @pydantic.model_validator(mode="after")
    def _check(self) -> "CompareConfig":
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError(
                f"config.networks has names twice, of {', '.join(names)}; a name is a folder's, change one"
            )
        if self.baseline not in names:
            raise ValueError(
                f"config.baseline is {self.baseline!r}, no network of the comparison; {suggest(self.baseline, names)}"
            )
        for name in names:
            if name in _OTHER_FOLDERS:
                raise ValueError(
                    f"config.networks has a network {name!r}, but that folder is for other things; rename it"
                )
            try:
                self._check_network(name)
            except UserError as error:
                raise ValueError(f"config.networks has a network {name!r} that makes no training: {error}") from error
        return self

    def _check_network(self, name: str) -> None:
        training = self.training_of(name, self.seeds[0])
        if training.task.name != "classification":
            raise UserError(
                f"config.task.name is {training.task.name!r} but must be 'classification', because test accuracies are "
                "compared"
            )
        if self.search_of(name, self.seeds[0]) is not None and training.model.conv != "ICConv":
            raise UserError(
                f"it has a search but config.model.conv {training.model.conv!r}; set 'ICConv', or leave one out"
            )

    @property
    def names(self) -> list[str]:
        """The names of the networks."""
        return [network["name"] for network in self.networks]

    def network(self, name: str) -> dict[str, Any]:
        """Returns the entry of a network."""
        return next(network for network in self.networks if network["name"] == name)

    def title(self, name: str) -> str:
        """Returns the title of a network in the table."""
        return str(self.network(name).get("title", name))

    def training_of(self, name: str, seed: int) -> Config:
        """Returns the training of a network, without the dilations that its search will find.

        Raises:
            UserError: if its settings are not those of a training.
        """
        entry = self.network(name)
        changes = {key: value for key, value in entry.items() if key not in ("name", "title", "search")}
        return update_config(self.training, {**changes, "seed": seed})

    def search_of(self, name: str, seed: int) -> SearchConfig | None:
        """Returns the search for a network's dilations, or None.

        Raises:
            UserError: if its settings are not those of a search.
        """
        if "search" not in self.network(name):
            return None
        training = self.training_of(name, seed)
        search = {**_SEARCH, "epochs": training.epochs, **self.network(name)["search"]}
        plain = {"epochs": search.pop("epochs"), "model": {"conv": "", "conv_kwargs": {}, "convs": {}}}
        values = {**search, "seeds": [seed], "training": merge_changes(training.model_dump(), plain, Config)}
        return validate_config(values, SearchConfig)

    def first_training(self, name: str) -> Config:
        """Returns the first training of a network with the first seed: the network, or the supernet of its search.

        Raises:
            UserError: if its settings are not those of a training.
        """
        seed = self.seeds[0]
        search = self.search_of(name, seed)
        return self.training_of(name, seed) if search is None else search.supernet(seed)

    def with_data_in(self, workdir: Path) -> "CompareConfig":
        """Returns the config with the data in the folder of the comparison, unless it sets their folder."""
        return update_config(self, {"training.data.dir": str(workdir / "data")}) if self.prepares_data else self

    @property
    def prepares_data(self) -> bool:
        """Whether the data are prepared in the folder of the comparison."""
        return self.training.data.source == _PREPARED and not self.training.data.dir
