"""Names of VGG: ``features`` numbers convolutions and normalisations, ``classifier`` numbers linear layers."""

from __future__ import annotations

from msconv_jax.models.families.vgg import VGG, VGGClassifier, VGGStage
from msconv_jax.torch_weights.conversion import rename_children


def _names_of_stage(stage: VGGStage) -> dict[str, str]:
    """Each convolution uses three indices: convolution, normalisation, activation."""
    names = {}
    for number in range(len(stage.convs)):
        names[f"convs.{number}"] = str(stage.place + 3 * number)
        names[f"bns.{number}"] = str(stage.place + 3 * number + 1)
    return names


def _names_of_classifier(classifier: VGGClassifier) -> dict[str, str]:
    """Each hidden layer uses three indices: linear, normalisation, activation; or linear, activation, dropout."""
    hidden = range(len(classifier.hidden))
    names = {f"hidden.{number}": str(3 * number) for number in hidden}
    names |= {f"bns.{number}": str(3 * number + 1) for number in hidden}
    return {**names, "last": str(3 * len(hidden))}


rename_children(VGG, lambda model: {"fc": "classifier", **{f["module"]: "features" for f in model.feature_info[:-1]}})
rename_children(VGGStage, _names_of_stage)
rename_children(VGGClassifier, _names_of_classifier)
