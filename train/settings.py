"""The settings of a run: what there is to set, within which range, and what each is if nobody sets it."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Generic, NamedTuple, TypeVar, get_origin, get_type_hints

from train.errors import UserError, suggest

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run; RULES says what each means, lists and dictionaries hold JSON values.

    Raises:
        UserError: if two settings contradict each other.
    """

    # What is trained.
    source: str
    model: str
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    conv: str = ""
    conv_kwargs: dict[str, Any] = field(default_factory=dict)
    convs: dict[str, Any] = field(default_factory=dict)

    # Data.
    data_dir: str = ""
    splits: dict[str, Any] = field(default_factory=dict)
    strict_images: bool = False
    image_size: int = 0
    augment: dict[str, Any] = field(default_factory=dict)
    pixel_mean: list[float] = field(default_factory=list)
    pixel_std: list[float] = field(default_factory=list)
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 1.0
    label_smoothing: float = 0.0
    eval_size: int = 0
    eval_resize: int = 0
    eval_crops: int = 1
    data_threads: int = 2

    # Optimisation.
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    warmup_epochs: float = 0.0
    schedule: str = "cosine"
    schedule_epochs: list[float] = field(default_factory=list)
    schedule_factor: float = 0.1
    weight_decay: float = 0.0
    decay_all: bool = False
    decay_growth: float = 1.0
    decay_growth_epochs: float = 0.0
    gradient_clip_norm: float = 0.0
    accumulation_steps: int = 1
    ema_decay: float = 0.0

    # Computation.
    compute_dtype: str = "float32"
    batch_norm: str = "global"
    remat: bool = False
    shards: int = 1

    # The run.
    checkpoint_every: int = 0
    profile: bool = False

    def __post_init__(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise UserError(
                f"config.warmup_epochs is {self.warmup_epochs} but must not exceed config.epochs, {self.epochs}"
            )
        self._check_schedule()
        self._check_decay()
        self._check_step()

    def _check_schedule(self) -> None:
        falls = self.schedule_epochs
        if self.schedule != "steps":
            if falls:
                raise UserError(
                    f"config.schedule_epochs is {falls} but config.schedule is {self.schedule!r}, which has no use for "
                    "them; set config.schedule='steps', or config.schedule_epochs=[]"
                )
            return
        if not falls:
            raise UserError(
                "config.schedule is 'steps' but config.schedule_epochs is []; list the epochs at which the rate falls, "
                "or set config.schedule='constant'"
            )
        if (
            any(a >= b for a, b in itertools.pairwise(falls))
            or not self.warmup_epochs <= falls[0] <= falls[-1] < self.epochs
        ):
            raise UserError(
                f"config.schedule_epochs is {falls} but must rise, from config.warmup_epochs, {self.warmup_epochs}, at "
                f"the earliest to below config.epochs, {self.epochs}"
            )

    def _check_decay(self) -> None:
        if (self.decay_growth > 1) != (self.decay_growth_epochs > 0):
            raise UserError(
                f"config.decay_growth is {self.decay_growth} and config.decay_growth_epochs is "
                f"{self.decay_growth_epochs}, but the decay grows by the one after every so many of the other; set "
                "both, or leave both at 1 and 0"
            )
        if self.decay_growth > 1 and not self.weight_decay:
            raise UserError(
                f"config.decay_growth is {self.decay_growth} but config.weight_decay is 0, and 0 does not grow; set "
                "config.weight_decay, or config.decay_growth=1 and config.decay_growth_epochs=0"
            )

    def _check_step(self) -> None:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise UserError(
                f"config.nesterov is True but config.optimizer is {self.optimizer!r} with config.momentum "
                f"{self.momentum}: only 'sgd' with momentum knows it; set config.nesterov=False"
            )
        is_mixed = bool(self.mixup_alpha or self.cutmix_alpha)
        if is_mixed and self.batch_size % 2:
            raise UserError(
                f"config.batch_size is {self.batch_size} but must be even for Mixup and CutMix, which mix images in "
                f"pairs; {self.batch_size + 1} would do"
            )
        if not is_mixed and self.mix_probability != 1:
            raise UserError(
                f"config.mix_probability is {self.mix_probability} but nothing is mixed; set config.mixup_alpha or "
                "config.cutmix_alpha above 0, or leave config.mix_probability at 1"
            )
        if self.batch_norm == "device" and self.shards > 1:
            raise UserError(
                f"config.batch_norm is 'device' but config.shards is {self.shards}, and statistics of a device's own "
                "need whole parameters there; set config.shards=1, or config.batch_norm='global'"
            )


class Rule(NamedTuple):
    """The range of a setting, and its type and range in words."""

    allows: Callable[[Any], bool]
    words: str


def one_of(*names: str) -> Rule:
    """The rule of a setting that takes one of a few words."""
    return Rule(lambda value: value in names, "one of " + ", ".join(map(repr, names)))


def _numbers(allows: Callable[[float], bool], words: str) -> Rule:
    def all_allowed(values: list[Any]) -> bool:
        return all(type(value) in (int, float) and allows(value) for value in values)

    return Rule(all_allowed, f"a list of {words}")


def _is_seeds(value: list[Any]) -> bool:
    return (
        bool(value) and all(type(seed) is int and 0 <= seed < 2**31 for seed in value) and len(set(value)) == len(value)
    )


SEEDS = Rule(_is_seeds, "a list of different whole numbers from 0 to 2**31 - 1")

_ANY = lambda value: True  # noqa: E731
_COUNT = Rule(lambda v: v >= 1, "a whole number of at least 1")
_AT_LEAST_0 = Rule(lambda v: 0 <= v < math.inf, "a number of at least 0")
_ABOVE_0 = Rule(lambda v: 0 < v < math.inf, "a number above 0")
_FRACTION = Rule(lambda v: 0 <= v < 1, "a number from 0 to below 1")
_SWITCH = Rule(_ANY, "True or False")
_PIXELS = Rule(lambda v: v >= 0, "a whole number of pixels, or 0 for the default")
RULES: dict[str, Rule] = {
    "source": Rule(bool, "the name of a data source"),
    "model": Rule(bool, "the name of a model"),
    "epochs": _COUNT,
    "batch_size": Rule(lambda v: v >= 1, "a whole number of at least 1: images a step, over all devices"),
    "learning_rate": Rule(_ABOVE_0.allows, "a number above 0: the rate at its peak"),
    "seed": Rule(lambda v: 0 <= v < 2**31, "a whole number from 0 to 2**31 - 1"),
    "model_kwargs": Rule(_ANY, "a dictionary of arguments for the model"),
    "conv": Rule(_ANY, "the name of an operator, or '' for the model's own"),
    "conv_kwargs": Rule(_ANY, "a dictionary of arguments for the operator"),
    "convs": Rule(_ANY, "a dictionary, by convolutions' paths, of arguments for the operator there, or {}"),
    "data_dir": Rule(_ANY, "the folder of the data, a bucket's path too, or '' for the source's own place"),
    "splits": Rule(
        lambda v: v.keys() <= {"train", "validation", "test"} and all(type(s) is str and s for s in v.values()),
        "a dictionary from 'train', 'validation' and 'test' to names of the source's splits, or {} for its own",
    ),
    "strict_images": Rule(_ANY, "True or False: whether a damaged image stops the run"),
    "image_size": Rule(_PIXELS.allows, "the side of the training images in pixels, or 0 for the source's own"),
    "augment": Rule(_ANY, "a dictionary from transforms to dictionaries of their arguments, or {}"),
    "pixel_mean": _numbers(math.isfinite, "a number a channel, images scaled to 0..1, or [] for the source's own"),
    "pixel_std": _numbers(_ABOVE_0.allows, "a number above 0 a channel, or [] for the source's own"),
    "mixup_alpha": Rule(_AT_LEAST_0.allows, "a number of at least 0, the beta distribution's; 0 turns Mixup off"),
    "cutmix_alpha": Rule(_AT_LEAST_0.allows, "a number of at least 0, the beta distribution's; 0 turns CutMix off"),
    "mix_probability": Rule(lambda v: 0 <= v <= 1, "a number from 0 to 1: the share of the batches that are mixed"),
    "label_smoothing": _FRACTION,
    "eval_size": Rule(_PIXELS.allows, "the side of the evaluated crop in pixels, or 0 for config.image_size"),
    "eval_resize": Rule(
        _PIXELS.allows, "the shorter side before the crop in pixels, or 0 for config.eval_size over 0.875"
    ),
    "eval_crops": Rule(lambda v: v in (1, 10), "1, the centre, or 10: four corners and the centre, and their mirrors"),
    "data_threads": Rule(lambda v: 0 <= v <= 512, "a whole number from 0 to 512"),
    "optimizer": one_of("sgd", "lamb", "adamw"),
    "momentum": _FRACTION,
    "nesterov": _SWITCH,
    "beta1": _FRACTION,
    "beta2": _FRACTION,
    "epsilon": _ABOVE_0,
    "warmup_epochs": _AT_LEAST_0,
    "schedule": one_of("cosine", "steps", "constant"),
    "schedule_epochs": _numbers(_ABOVE_0.allows, "epochs above 0 at which schedule='steps' lowers the rate"),
    "schedule_factor": Rule(lambda v: 0 < v <= 1, "a number above 0, at most 1: what each step multiplies by"),
    "weight_decay": _AT_LEAST_0,
    "decay_all": Rule(_ANY, "True, or False: decay neither norms nor biases"),
    "decay_growth": Rule(lambda v: 1 <= v < math.inf, "a number of at least 1: what multiplies the decay now and then"),
    "decay_growth_epochs": Rule(_AT_LEAST_0.allows, "the epochs between those multiplications, or 0 for none"),
    "gradient_clip_norm": Rule(_AT_LEAST_0.allows, "the gradients' largest global norm, or 0 for any"),
    "accumulation_steps": Rule(_COUNT.allows, "a whole number of at least 1: the parts in which a batch is computed"),
    "ema_decay": Rule(_FRACTION.allows, "a number from 0 to below 1; 0 evaluates the parameters themselves"),
    "compute_dtype": one_of("float32", "bfloat16"),
    "batch_norm": one_of("global", "device"),
    "remat": Rule(_ANY, "True or False: whether activations are computed again for the gradient"),
    "shards": Rule(_COUNT.allows, "a whole number of at least 1: over how many devices each parameter is divided"),
    "checkpoint_every": Rule(lambda v: v >= 0, "a whole number of steps, or 0 for none"),
    "profile": _SWITCH,
}


@dataclasses.dataclass(frozen=True)
class Schema(Generic[C]):
    """A kind of config.

    Attributes:
        kind: its dataclass.
        rules: the rule of each of its fields.
        file: name of the file that holds it in the folder of a run.
    """

    kind: type[C]
    rules: Mapping[str, Rule]
    file: str


TRAINING = Schema(Config, RULES, "config.json")


def checked(values: Mapping[str, Any], schema: Schema[C] = TRAINING) -> C:
    """Checks every value against its type and its rule; what is not set is as by default.

    The values pass through JSON, so that a run and its stored config cannot differ.

    Raises:
        UserError: for a missing or unknown key, a wrong type, or a value out of range.
    """
    try:
        values = json.loads(json.dumps(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"config values must be plain numbers, strings, lists: {error}") from error
    for key in values:
        if key not in schema.rules:
            raise UserError(f"the config has an unknown key {key!r}; {suggest(key, schema.rules)}")
    values = {**defaults(schema), **values}
    for key, annotation in get_type_hints(schema.kind).items():
        if key not in values:
            raise UserError(f"the config lacks the key {key!r}: set it to {schema.rules[key].words}")
        value, expected = values[key], get_origin(annotation) or annotation
        is_number = expected is float and type(value) in (int, float)
        if not (is_number or type(value) is expected) or not schema.rules[key].allows(value):
            raise UserError(f"config.{key} is {value!r} but must be {schema.rules[key].words}")
    return schema.kind(**values)


def defaults(schema: Schema[Any]) -> dict[str, Any]:
    """The settings that need not be set, each with its value then."""
    values = {}
    for setting in dataclasses.fields(schema.kind):
        if setting.default is not dataclasses.MISSING:
            values[setting.name] = setting.default
        elif setting.default_factory is not dataclasses.MISSING:
            values[setting.name] = setting.default_factory()
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Writes nested dictionaries as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
