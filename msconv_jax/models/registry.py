"""The models by name: what a name means, how it is built, and what was published about it."""

import dataclasses
import difflib
import fnmatch
import functools
import importlib.resources
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flax import nnx

from msconv_jax.models.backbone import FeatureBackbone
from msconv_jax.models.image_model import ImageModel
from msconv_jax.signatures import SYMPTOMS, check_arguments, explains_arguments

__all__ = [
    "ADE20K",
    "CIFAR_10",
    "CIFAR_100",
    "IMAGENET",
    "TASKS",
    "ModelEntry",
    "Published",
    "create_model",
    "known_counts",
    "list_models",
    "model_entry",
    "register_model",
]


# What the registered networks predict: one label for an image, or one for each pixel.
TASKS = ("classification", "segmentation")

# The images of the papers' data sets, as arguments of `ModelEntry`.
IMAGENET: dict[str, Any] = {"num_classes": 1000, "input_size": (224, 224, 3)}
CIFAR_10: dict[str, Any] = {
    "num_classes": 10,
    "input_size": (32, 32, 3),
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "crop_fraction": 1.0,
}
CIFAR_100: dict[str, Any] = {
    **CIFAR_10,
    "num_classes": 100,
    "mean": (0.5071, 0.4865, 0.4409),
    "std": (0.2673, 0.2564, 0.2762),
}
ADE20K: dict[str, Any] = {"num_classes": 150, "input_size": (473, 473, 3), "crop_fraction": 1.0}


@dataclasses.dataclass(frozen=True)
class Published:
    """The results that a paper or its public code prints for a network; None where it prints none.

    Accuracies are per cent with one central crop; printed errors are subtracted from 100. Results of other papers'
    networks in changed forms, or with other numbers of classes, are left out.

    Attributes:
        table: where the results are printed.
        parameters: millions of parameters, digit by digit as printed: the tests compare at this precision.
        macs: billions of multiply-accumulates for one image, as printed.
        top1: top-1 accuracy on ImageNet or, for networks of 32x32 images, CIFAR.
        top5: top-5 accuracy.
        miou: mean intersection over union on ADE20K's validation images, with sliding windows at one scale.
        pixel_accuracy: share of correct pixels, likewise.
        weights: licence of the repository that has weights for `load_torch_checkpoint`, "not stated" if it has no
            licence; None if there are no weights.

    Example:
        >>> published = model_entry("ps_resnet50").published
        >>> published.top1, published.parameters, published.weights
        (78.874, '25.557', 'MIT')
    """

    table: str | None = None
    parameters: str | None = None
    macs: str | None = None
    top1: float | None = None
    top5: float | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    weights: str | None = None


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """Everything the library knows about one model name, except its counts, which are computed.

    Attributes:
        name: the name given to `create_model`.
        builder: class or function that builds the model from keyword arguments, among them `num_classes` and `rngs`. It
            names every argument, so that misspelt ones are refused.
        config: arguments of the builder that make this model.
        num_classes: default number of classes.
        input_size: height, width and channels of the images of the published results.
        paper: the paper that describes the network.
        mean: mean of each channel for the normalisation of images with pixels in [0, 1].
        std: standard deviation likewise.
        crop_fraction: side of the central crop over the shorter side of the resized image, in evaluation.
        channel_order: "RGB" or "BGR", of `mean`, `std` and the published weights.
        task: one of `TASKS`.
        published: results and weights.
        make_conv: function that makes the builder's `conv`; its keywords replace `conv` among the model's. None leaves
            `conv` itself.

    Raises:
        ValueError: if the builder takes any keyword, the config names an argument it lacks, the task is unknown, or
            `make_conv` does not fit the builder.

    Example:
        >>> entry = model_entry("ps_resnet50")
        >>> entry.num_classes, entry.input_size, entry.config["layers"], entry.crop_fraction
        (1000, (224, 224, 3), (3, 4, 6, 3), 0.875)
        >>> entry.parameters, entry.macs, entry.published.top1, entry.published.table
        (25557032, 4089184256, 78.874, 'PSConv paper, tables 1 and 2')
    """

    name: str
    builder: Callable[..., nnx.Module]
    config: Mapping[str, Any]
    num_classes: int
    input_size: tuple[int, int, int]
    paper: str
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_fraction: float = 0.875
    channel_order: str = "RGB"
    task: str = "classification"
    published: Published = Published()
    make_conv: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        # A read-only copy: later changes of the caller's dictionary do not change a registered model.
        object.__setattr__(self, "config", MappingProxyType(dict(self.config)))
        _check_task(self.task)
        unknown = sorted(set(self.config) - set(self.keywords))
        if unknown:
            raise ValueError(
                f"config of {self.name!r} has {unknown}: {self.builder.__name__} takes only {', '.join(self.keywords)}"
            )

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords that `create_model` accepts for this model, besides `rngs`."""
        keywords = self._keywords_of(self.builder)
        if self.make_conv is None:
            return keywords
        replacing = self._keywords_of(self.make_conv)
        if "conv" not in keywords or set(replacing) & set(keywords):
            raise ValueError(
                f"make_conv of {self.name!r} has the keywords {', '.join(replacing)}: {self.builder.__name__} must "
                f"have 'conv' and none of these; it has {', '.join(keywords)}"
            )
        place = keywords.index("conv")
        return (*keywords[:place], *replacing, *keywords[place + 1 :])

    def _keywords_of(self, function: Callable[..., Any]) -> tuple[str, ...]:
        # Flax's metaclass hides the signature of a class, but not that of its __init__.
        function = function.__init__ if inspect.isclass(function) else function
        keywords: list[str] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                hint = typing.get_type_hints(function).get(name)
                if typing.get_origin(hint) is typing.Unpack:  # a TypedDict names its keywords
                    keywords += typing.get_type_hints(typing.get_args(hint)[0])
                    continue
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise ValueError(
                    f"builder of {self.name!r} takes *args or **kwargs: it could not refuse a misspelt argument; name "
                    "its arguments"
                )
            keywords.append(name)
        return tuple(name for name in keywords if name not in ("self", "rngs"))

    def check_keywords(self, keywords: Iterable[str]) -> None:
        """Raises TypeError for a keyword that `create_model` does not accept for this model."""
        for keyword in keywords:
            if keyword not in self.keywords:
                raise TypeError(
                    f"model {self.name!r} has no argument {keyword!r}{_did_you_mean(keyword, self.keywords)} "
                    f"The arguments are {', '.join(self.keywords)}"
                )

    def build(self, arguments: Mapping[str, Any], rngs: nnx.Rngs) -> nnx.Module:
        """Builds the model from `arguments`, which are among its `keywords`.

        Raises:
            ValueError: if an argument has a wrong type or is out of its range.
        """
        of_builder = dict(arguments)
        if self.make_conv is not None:
            of_conv = {name: of_builder.pop(name) for name in self._keywords_of(self.make_conv) if name in of_builder}
            of_builder["conv"] = _explained(self.make_conv, of_conv)
        return _explained(self.builder, of_builder, rngs=rngs)

    @property
    def parameters(self) -> int | None:
        """Parameter count with default arguments; None for a model that you registered.

        `msconv_jax.counting.count_parameters` counts any network.
        """
        return known_counts().get(self.name, {}).get("parameters")

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of convolutions and linear layers for one image of `input_size`, likewise.

        `msconv_jax.counting.layer_macs` counts any network.
        """
        return known_counts().get(self.name, {}).get("macs")


def _explained(function: Callable[..., Any], arguments: Mapping[str, Any], **rngs: nnx.Rngs) -> Any:
    """Calls a function, and names the argument of a wrong type."""
    try:
        result = function(**arguments, **rngs)
    except SYMPTOMS as error:
        check_arguments(function, {**arguments, **rngs}, cause=error)
        raise
    check_arguments(function, arguments)  # a stored argument of a wrong type fails only when the model is called
    return result


@functools.cache
def known_counts() -> dict[str, dict[str, int]]:
    """The counts of all registered networks, from `counts.json`.

    `python -m tests.model_table` writes the file. Counting builds every network, which takes minutes.
    """
    return json.loads(importlib.resources.files("msconv_jax.models").joinpath("counts.json").read_text())


_ENTRIES: dict[str, ModelEntry] = {}


@explains_arguments
def register_model(entry: ModelEntry) -> ModelEntry:
    """Makes a model known to `create_model` and `list_models`.

    Args:
        entry: the model.

    Returns:
        The same entry.

    Raises:
        ValueError: if the name is taken.

    Example:
        >>> register_model(model_entry("resnet50"))
        Traceback (most recent call last):
        ValueError: model 'resnet50' is registered already; choose another name
    """
    if entry.name in _ENTRIES:
        raise ValueError(f"model {entry.name!r} is registered already; choose another name")
    _ENTRIES[entry.name] = entry
    return entry


@explains_arguments
def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """Lists the registered names that match a shell-style pattern, sorted.

    Args:
        pattern: wildcards `*`, `?` and `[...]`, case-sensitive.
        task: only networks for this task, one of `TASKS`; None is all.

    Returns:
        The names; empty if none match.

    Raises:
        ValueError: if the task is unknown.

    Example:
        >>> list_models("ps_resnet?")
        ['ps_resnet8']
        >>> list_models("*_resnet8", task="segmentation")
        ['seg_baseline_ps_resnet8']
    """
    if task is not None:
        _check_task(task)
    return sorted(
        name for name, entry in _ENTRIES.items() if fnmatch.fnmatchcase(name, pattern) and task in (None, entry.task)
    )


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"task={task!r}: must be one of {', '.join(TASKS)}")


@explains_arguments
def model_entry(name: str) -> ModelEntry:
    """Returns the entry of a registered name.

    Args:
        name: one of `list_models()`.

    Returns:
        The entry.

    Raises:
        ValueError: if the name is unknown; the message lists near matches.

    Example:
        >>> model_entry("resnext50_32x4")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown model 'resnext50_32x4': did you mean resnext50_32x4d, ...
    """
    if name not in _ENTRIES:
        raise ValueError(f"unknown model {name!r}{_did_you_mean(name, _ENTRIES)} list_models() gives all names")
    return _ENTRIES[name]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    rngs: nnx.Rngs,
    **overrides: Any,
) -> Any:
    """Builds a model by name, in training mode (`model.eval()` switches).

    Args:
        name: one of `list_models()`.
        num_classes: number of logits; None is that of the paper's data set, 0 leaves the classifier out.
        features_only: whether to return a `FeatureBackbone`, whose calls return feature maps.
        out_indices: indices of the maps in `feature_info`; None is all. Only with `features_only`.
        rngs: source of the `params` and, with drop path, `dropout` streams.
        **overrides: any argument of the model's builder, such as `conv`, `dtype`, `in_channels` or
            `drop_path_rate` of `ResNet`; `model_entry(name).keywords` lists them. `conv` replaces
            the spatial convolution of the blocks: `conv=partial(PSConv, pattern=(1, 2))`.

    Returns:
        The model, called with images (N, H, W, C), floating point. A classifier returns logits (N, num_classes); the
        classes of other models, such as `Segmenter`, describe their outputs.

    Raises:
        ValueError: if the name is unknown, an argument is out of its range, or the model has no feature maps.
        TypeError: if an override is no argument of the builder; the message lists near matches
            and the valid ones.

    Example:
        >>> import jax.numpy as jnp
        >>> model = create_model("ps_resnet8", num_classes=4, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 16, 16, 3))).shape
        (2, 4)
    """
    entry = model_entry(name)
    if features_only and entry.task != "classification":
        raise ValueError(
            f"features_only=True: {name!r} is a network for {entry.task}, which has no feature maps; build its "
            "backbone by the backbone's name"
        )
    if out_indices is not None and not features_only:
        raise ValueError(f"out_indices={out_indices!r} without features_only=True: only a backbone returns maps")
    entry.check_keywords(overrides)
    arguments = {"num_classes": entry.num_classes, **entry.config, **overrides}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if features_only:
        arguments["num_classes"] = 0
    model = entry.build(arguments, rngs)
    check_arguments(create_model, {"features_only": features_only})
    if not features_only:
        return model
    if not isinstance(model, ImageModel):
        raise ValueError(f"features_only=True: {name!r} is no ImageModel and has no feature maps")
    return FeatureBackbone(model, out_indices)


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=3)
    return f": did you mean {', '.join(near)}?" if near else "."
