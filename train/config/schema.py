"""The settings of a run: each field has its type, range, default and description.

A description completes the error message "config.x.y is ... but must be", so it states the range first.
"""

import itertools
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from train.errors import expand_user

Split = Literal["train", "validation", "test"]

Positive = Annotated[float, Field(gt=0, description="a number above 0")]
AtLeast0 = Annotated[float, Field(ge=0, description="a number of at least 0")]
Fraction = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")]
Count = Annotated[int, Field(ge=1, lt=2**31, description="a whole number from 1 to 2**31 - 1")]
Number = Annotated[int, Field(ge=0, lt=2**31, description="a whole number from 0 to 2**31 - 1")]
Switch = Annotated[bool, Field(description="True or False")]
Folder = Annotated[str, pydantic.AfterValidator(expand_user)]
Path = Annotated[str, Field(min_length=1)]  # of a module, such as "layer1.0"


class Settings(pydantic.BaseModel):
    """A group of settings: strictly typed, without unknown keys, and immutable."""

    file: ClassVar[str]  # the file of a program's settings in the folder of a run
    changeable: ClassVar[tuple[str, ...]] = ()  # settings that may change when a run resumes
    raisable: ClassVar[tuple[str, ...]] = ()  # settings that may grow when a run resumes, which makes it longer

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Settings):
    """The data, and the augmentation of training images."""

    source: str = Field(min_length=1, description="the name of a data source")
    dir: Folder = Field(default="", description="the folder of the data, also in a bucket, or '' for the usual place")
    splits: dict[Split, Annotated[str, Field(min_length=1)]] = Field(
        default={}, description="a dictionary from 'train', 'validation' and 'test' to splits of the source, or {}"
    )
    strict_images: Switch = False  # whether a damaged image stops the run
    image_size: Number = Field(
        default=0, description="the side of training images in whole pixels, or 0 for the source's"
    )
    augment: dict[str, Any] = Field(default={}, description="a dictionary from transforms to dictionaries of arguments")
    pixel_mean: list[float] = Field(default=[], description="a list of a number a channel, or [] for the source's own")
    pixel_std: list[Positive] = Field(default=[], description="a list of a number above 0 a channel, or []")
    threads: int = Field(default=2, ge=0, le=512, description="a whole number from 0 to 512")


class Model(Settings):
    """The network."""

    name: str = Field(min_length=1, description="the name of a model")
    kwargs: dict[str, Any] = Field(default={}, description="a dictionary of arguments of the model")
    conv: str = Field(default="", description="the name of an operator, or '' for the model's own")
    conv_kwargs: dict[str, Any] = Field(default={}, description="a dictionary of arguments of the operator")
    convs: dict[str, Any] = Field(default={}, description="a dictionary from paths of convolutions to arguments there")
    frozen: list[Path] = Field(default=[], description="a list of module paths, such as 'layer1', that do not change")


class Optimizer(Settings):
    """The optimiser and its schedules."""

    name: Literal["sgd", "lamb", "adamw"] = Field(default="sgd", description="one of 'sgd', 'lamb', 'adamw'")
    learning_rate: float = Field(gt=0, description="a number above 0: the rate at its peak")
    multipliers: dict[Path, Positive] = Field(default={}, description="a dictionary from module paths to factors")
    momentum: Fraction = 0.9
    nesterov: Switch = False
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8
    warmup_epochs: AtLeast0 = 0.0  # with a linearly rising rate
    schedule: Literal["cosine", "steps", "poly", "constant"] = Field(
        default="cosine", description="one of 'cosine', 'steps', 'poly', 'constant'"
    )
    schedule_epochs: list[Positive] = Field(default=[], description="a list of epochs above 0 at which the rate falls")
    schedule_factor: float = Field(default=0.1, gt=0, le=1, description="a number above 0, at most 1")
    schedule_power: Positive = 0.9  # the exponent of schedule="poly"
    weight_decay: AtLeast0 = 0.0
    decay_all: Switch = False  # whether the decay includes norms and biases
    decay_growth: float = Field(default=1.0, ge=1, description="a number of at least 1")  # a factor of the decay,
    decay_growth_epochs: AtLeast0 = 0.0  # applied after every so many epochs
    gradient_clip_norm: AtLeast0 = 0.0  # the largest global norm of the gradients; 0 for no limit
    accumulation_steps: Count = 1  # the number of parts of a batch, computed one after another
    ema_decay: Fraction = 0.0  # of the averages that are evaluated; 0 for none

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if (self.schedule == "steps") != bool(self.schedule_epochs):
            raise ValueError(
                f"config.optimizer.schedule is {self.schedule!r} and config.optimizer.schedule_epochs is "
                f"{self.schedule_epochs}, but 'steps' needs the epochs at which the rate falls, and nothing else has "
                "use for them; set config.optimizer.schedule='steps' and the epochs, or another schedule and []"
            )
        grows = self.decay_growth > 1
        if grows != (self.decay_growth_epochs > 0) or (grows and not self.weight_decay):
            raise ValueError(
                f"config.optimizer.decay_growth is {self.decay_growth}, config.optimizer.decay_growth_epochs is "
                f"{self.decay_growth_epochs} and config.optimizer.weight_decay is {self.weight_decay}, but the decay "
                "grows by the first after every so many of the second; set all three, or leave the first two at 1 and 0"
            )
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError(
                f"config.optimizer.nesterov is True but config.optimizer.name is {self.name!r} with momentum "
                f"{self.momentum}: only 'sgd' with momentum knows it; set config.optimizer.nesterov=False"
            )
        return self


class Compute(Settings):
    """Precision, memory and sharding of a step."""

    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="one of 'float32', 'bfloat16'")
    batch_norm: Literal["global", "device"] = Field(default="global", description="one of 'global', 'device'")
    remat: Switch = False  # whether activations are recomputed for the gradient
    shards: Count = 1  # the number of devices over which each parameter is sharded

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Compute":
        if self.batch_norm == "device" and self.shards > 1:
            raise ValueError(
                f"config.compute.batch_norm is 'device' but config.compute.shards is {self.shards}, and statistics of "
                "one device need whole parameters there; set config.compute.shards=1, or "
                "config.compute.batch_norm='global'"
            )
        return self


def _one_or_ten(value: int) -> int:  # Literal[1, 10] would accept True and 10.0
    if value not in (1, 10):
        raise ValueError("neither 1 nor 10")
    return value


class Classification(Settings):
    """One label an image; see `train.tasks.classification`."""

    name: Literal["classification"] = "classification"
    label_smoothing: Fraction = 0.0
    mixup_alpha: AtLeast0 = 0.0  # of the beta distribution; 0 turns Mixup off
    cutmix_alpha: AtLeast0 = 0.0  # of the beta distribution; 0 turns CutMix off
    mix_probability: float = Field(default=1.0, ge=0, le=1, description="a number from 0 to 1")  # of a batch
    eval_size: Number = Field(default=0, description="the side of the crop in whole pixels, or 0 for data.image_size")
    eval_resize: Number = Field(default=0, description="the shorter side in whole pixels, or 0 for the usual")
    eval_crops: Annotated[int, pydantic.AfterValidator(_one_or_ten)] = Field(
        default=1, description="1, the centre, or 10: four corners and the centre, and their mirrors"
    )

    @property
    def is_mixed(self) -> bool:
        """Whether Mixup or CutMix is on."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Classification":
        if not self.is_mixed and self.mix_probability != 1:
            raise ValueError(
                f"config.task.mix_probability is {self.mix_probability} but nothing is mixed; set "
                "config.task.mixup_alpha or config.task.cutmix_alpha above 0, or leave config.task.mix_probability at 1"
            )
        return self


class Segmentation(Settings):
    """One class a pixel; see `train.tasks.segmentation`."""

    name: Literal["segmentation"] = "segmentation"
    crop: list[Count] = Field(default=[], max_length=2, description="a list of height and width in pixels, or []")
    ignore_label: int = Field(default=255, ge=0, le=255, description="a whole number from 0 to 255")
    auxiliary_weight: AtLeast0 = 0.4  # the factor of the loss of the auxiliary head
    scales: list[Positive] = Field(default=[1.0], min_length=1, description="a list of numbers above 0")  # of base_size
    base_size: Number = Field(default=0, description="the longer side at scale 1 in whole pixels, or 0 for the image's")
    mirror: Switch = True  # whether the test averages over images and their mirrors


class Config(Settings):
    """The settings of a run; `train.config.validate_config` creates them from nested values."""

    file: ClassVar[str] = "config.json"
    # The data may move: the folder of a run records their fingerprints.
    changeable: ClassVar[tuple[str, ...]] = (
        "data.dir",
        "data.strict_images",
        "data.threads",
        "checkpoint_every",
        "profile",
    )
    raisable: ClassVar[tuple[str, ...]] = ("epochs",)

    data: Data
    model: Model
    optimizer: Optimizer
    task: Annotated[Classification | Segmentation, Field(discriminator="name")] = Classification()
    compute: Compute = Compute()

    epochs: Count
    batch_size: int = Field(ge=1, description="a whole number of at least 1: images a step, over all devices")
    seed: int = Field(default=0, ge=0, lt=2**31, description="a whole number from 0 to 2**31 - 1")
    checkpoint_every: Number = 0  # steps between checkpoints within an epoch; 0 for none
    profile: Switch = False  # whether a few steps are traced

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Config":
        optimizer = self.optimizer
        if optimizer.warmup_epochs > self.epochs:
            raise ValueError(
                f"config.optimizer.warmup_epochs is {optimizer.warmup_epochs} but must not exceed config.epochs, "
                f"{self.epochs}"
            )
        falls = optimizer.schedule_epochs
        if falls and (
            any(a >= b for a, b in itertools.pairwise(falls))
            or not optimizer.warmup_epochs <= falls[0] <= falls[-1] < self.epochs
        ):
            raise ValueError(
                f"config.optimizer.schedule_epochs is {falls} but must rise, from config.optimizer.warmup_epochs, "
                f"{optimizer.warmup_epochs}, at the earliest to below config.epochs, {self.epochs}"
            )
        return self
