"""The record of a run's training data, ``data.json`` in its folder.

Prediction needs only this file. Resumed training and evaluation compare their data with it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from train.config.schema import Split
from train.config.stored import read_json, write_text
from train.data.opencv import MAX_PIXELS
from train.data.source import Source
from train.errors import UserError

_FILE = "data.json"
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a name has characters that cannot be printed")
    return text


def _small(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ValueError(f"an image has more than {MAX_PIXELS:,} pixels")
    return shape


Name = Annotated[str, pydantic.AfterValidator(_printable)]
Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
Side = Annotated[int, Field(ge=1)]


class DataRecord(pydantic.BaseModel):
    """The stored facts of a `Source`, and the number of samples and the fingerprint of each split."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    classes: tuple[Name, ...]
    segmentation_classes: tuple[Name, ...]
    image_shape: Annotated[tuple[Side, Side, Literal[1, 3]], pydantic.AfterValidator(_small)]
    is_sized: bool
    mean: Channels
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=3)]
    fields: frozenset[Name]
    counts: dict[Split, int]
    fingerprints: dict[Split, Name]

    @pydantic.model_validator(mode="after")
    def _check(self) -> "DataRecord":
        if not len(self.mean) == len(self.std) == self.image_shape[-1]:
            raise ValueError("mean and std have not one number for each channel")
        return self

    def to_json(self) -> str:
        """Writes the record as a JSON dictionary."""
        values = self.model_dump(mode="json")
        values["fields"].sort()
        return json.dumps(values, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    def source(self) -> Source:
        """Makes the source without samples, which prediction needs."""
        facts = {name: getattr(self, name) for name in Source._fields if name in DataRecord.model_fields}
        return Source(splits={}, **facts)


def make_record(source: Source) -> DataRecord:
    """Makes the record of a source."""
    facts = {name: value for name, value in source._asdict().items() if name in DataRecord.model_fields}
    return DataRecord(counts={split: len(samples) for split, samples in source.splits.items()}, **facts)


def write_record(workdir: Path, source: Source) -> None:
    """Writes the record of a run's training data to its folder."""
    write_text(workdir / _FILE, make_record(source).to_json())


def read_record(workdir: Path) -> DataRecord:
    """Reads the record of a run's training data.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = workdir / _FILE
    if not path.exists():
        raise UserError(
            f"{str(workdir)!r} has no {_FILE}, which training writes before its first step; train there first, or "
            "restore the file"
        )
    try:
        return DataRecord.model_validate(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged: {place + ': ' if place else ''}{first['msg']}; restore it") from error


def check_data(workdir: Path, source: Source) -> None:
    """Checks that a source is the training data of the run in a folder.

    Raises:
        UserError: if it differs; the message names the first differences.
    """
    differences = compare(read_record(workdir), make_record(source))
    if differences:
        raise UserError(
            f"the data are not those that the run in {workdir} was trained on: {'; '.join(differences[:4])}; restore "
            "the data, or train on these in another --workdir (evaluation of a run on other data is --config=... "
            f"--weights={workdir})"
        )


def check_same_names(workdir: Path, then: Sequence[str], now: Sequence[str]) -> None:
    """Checks that other data have the class names of a run, so that its network can be evaluated on them.

    Raises:
        UserError: if names differ; the message names the first difference.
    """
    if differing := compare_names(then, now, "class"):
        raise UserError(
            f"--weights={workdir} is a run on other classes than those of the data: {'; '.join(differing)}; give data "
            "whose classes have the same names"
        )


def compare(then: DataRecord, now: DataRecord) -> list[str]:
    """Lists the differences of two records, a clause for each."""
    found = [*compare_names(then.classes, now.classes, "class")]
    found += compare_names(then.segmentation_classes, now.segmentation_classes, "class of pixels")
    for name in ("image_shape", "is_sized", "mean", "std", "fields"):
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            found.append(f"{name} was {_plain(before)} and is {_plain(after)}")
    for split in _SPLITS:
        before, after = then.counts.get(split, 0), now.counts.get(split, 0)
        if before != after:
            found.append(f"the {split} split had {before:,} samples and has {after:,}")
        elif then.fingerprints.get(split) != now.fingerprints.get(split):
            found.append(f"the {split} split has as many samples, but others, or in another order")
    return found


def compare_names(then: Sequence[str], now: Sequence[str], noun: str) -> list[str]:
    """Describes the difference of two lists of class names, in at most two clauses."""
    found = [f"there were {len(then)} names of a {noun} and are {len(now)}"] if len(then) != len(now) else []
    for number, (before, after) in enumerate(zip(then, now, strict=False)):
        if before != after:
            return [*found, f"{noun} {number} was {before[:60]!r} and is {after[:60]!r}"]
    return found


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value
