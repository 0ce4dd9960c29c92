"""What the papers and their public code print about the registered networks: one row each.

Accuracies are those of one central crop, in per cent; printed errors are subtracted from 100. Parameters (millions) and
multiply-accumulates (billions, for one image) stand as they are printed, digit by digit: the tests hold the networks
against them. Left out is what papers print of others' networks in forms of their own, and of other numbers of classes.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

__all__ = ["PUBLISHED", "Published"]


@dataclasses.dataclass(frozen=True)
class Published:
    """What was published about a network; None where nothing was.

    Attributes:
        table: where.
        parameters: millions of parameters, as printed.
        macs: billions of multiply-accumulates for one image, as printed.
        top1: top-1 accuracy in per cent, on ImageNet or, of networks for 32x32 images, CIFAR.
        top5: top-5 accuracy in per cent.
        miou: mean intersection over union in per cent, of segmentation networks on ADE20K's validation images, with
            sliding windows at one scale.
        pixel_accuracy: share of right pixels in per cent, likewise.
        weights: licence of the repository that has the weights which `load_torch_checkpoint` takes; None if there are
            none, "not stated" if it has no licence.

    Example:
        >>> PUBLISHED["ps_resnet50"].top1, PUBLISHED["ps_resnet50"].parameters
        (78.874, '25.557')
    """

    table: str | None = None
    parameters: str | None = None
    macs: str | None = None
    top1: float | None = None
    top5: float | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    weights: str | None = None


_PS1, _PS6 = "PSConv paper, table 1", "PSConv paper, table 6"
_PY3 = "PyConv paper, table 3"
_IC1 = "IC-Conv paper, table 1, with dilations that were not published"
_OCT5, _OCT6, _OCT_CODE = "OctConv paper, table 5", "OctConv paper, table 6", "list of the PyTorch port"
_RES1, _RES2, _RES_CODE = "Res2Net paper, table 1", "Res2Net paper, table 2", "list of the public code"
_MIT, _BSD, _NC, _NONE = "MIT", "BSD-3-Clause", "non-commercial", "not stated"

# Name: table, parameters, multiply-accumulates, top-1, top-5, licence of the weights. The plain networks' weights are
# torchvision's, those of PSConv and IC-Conv the backbones of their detectors.
_ROWS: dict[str, tuple[str | None, str | None, str | None, float | None, float | None, str | None]] = {
    "resnet18": ("IC-Conv paper, table 1", None, None, 70.67, 89.74, _BSD),
    "resnet34": (None, None, None, None, None, _BSD),
    "resnet50": (_PS1, "25.557", "4.089", 77.150, 93.468, _BSD),
    "resnet101": (_PS1, None, None, 78.898, 94.304, _BSD),
    "resnet152": (_PY3, "60.19", "11.62", 78.45, 94.26, _BSD),
    "resnext50_32x4d": (_PS1, None, None, 78.198, 93.916, _BSD),
    "resnext101_32x4d": (_PS1, None, None, 79.498, 94.610, None),
    "se_resnet50": (_PS1, None, None, 77.808, 93.960, None),
    "se_resnet101": (_PS1, None, None, 79.268, 94.594, None),
    "resnext29_8x64d": (_PS6, None, None, 81.926, None, None),
    "resnext29_16x64d": (_PS6, None, None, 82.462, None, None),
    "ps_resnet50": ("PSConv paper, tables 1 and 2", "25.557", "4.089", 78.874, 94.276, _MIT),
    "ps_resnet101": (_PS1, None, None, 80.046, 94.948, _MIT),
    "ps_resnext50_32x4d": (_PS1, None, None, 79.622, 94.704, None),
    "ps_resnext101_32x4d": (_PS1, None, None, 80.502, 95.276, _MIT),
    "ps_se_resnet50": (_PS1, None, None, 79.186, 94.422, None),
    "ps_se_resnet101": (_PS1, None, None, 80.214, 95.076, None),
    "ps_resnext29_8x64d": (_PS6, None, None, 82.862, None, None),
    "ps_resnext29_16x64d": (_PS6, None, None, 83.472, None, None),
    "pyconv_resnet50": (_PY3, "24.85", "3.88", 77.88, 93.80, _MIT),
    "pyconv_resnet101": (_PY3, "42.31", "7.31", 79.01, 94.47, _MIT),
    "pyconv_resnet152": (_PY3, "56.64", "10.72", 79.52, 94.73, _MIT),
    "pyconvhg_resnet50": (_PY3, "25.23", "4.61", 78.48, 94.06, _MIT),
    "pyconvhg_resnet101": (_PY3, "44.63", "8.42", 79.22, 94.43, _MIT),
    "pyconvhg_resnet152": (_PY3, "60.66", "12.29", 79.36, 94.73, _MIT),
    "ic_resnet18": (_IC1, None, None, 71.74, 90.91, None),
    "ic_resnet50": (_IC1, None, None, 77.30, 93.58, _NONE),
    "ic_resnet101": (None, None, None, None, None, _NONE),
    "ic_resnext101_32x4d": (_IC1, None, None, 79.33, 94.74, None),
    "ic_mobilenetv2": (_IC1, None, None, 71.92, 90.54, None),
    "vgg16_bn": ("HetConv paper, table 5", None, None, 71.3, 90.2, _BSD),
    "het_vgg16": ("HetConv paper, table 5", None, None, 71.2, 90.2, None),
    "het_resnet50": ("HetConv paper, table 7", None, "2.85", 76.16, None, None),
    "vgg16_cifar": ("HetConv paper, table 2", None, "0.31374", 94.06, None, _NONE),
    "het_vgg16_cifar": ("HetConv paper, table 2", None, "0.10598", 93.93, None, _NONE),
    "oct_resnet50": (_OCT_CODE, "25.557", "2.367", 77.640, 93.662, _NONE),
    "oct_resnet101": (_OCT_CODE, None, "3.991", 78.794, 94.330, _NONE),
    "oct_resnet152": (_OCT_CODE, None, "5.615", 79.258, 94.480, _NONE),
    "oct_resnext50_32x4d": (_OCT6, "25.0", "2.4", 78.3, None, None),
    "oct_resnext101_32x4d": (_OCT6, "44.2", "4.0", 78.9, None, None),
    "mobilenetv1": ("MobileNets paper, table 4", "4.2", "0.569", 70.6, None, None),
    "mobilenetv2": (_OCT5, "3.5", "0.300", 72.0, None, _BSD),
    "oct_mobilenetv1": (_OCT5, "4.2", "0.321", 72.4, None, _NONE),
    "oct_mobilenetv2": (_OCT5, "3.5", "0.256", 72.0, None, None),
    "res2net50_48w_2s": (_RES_CODE, "25.29", "4.2", 77.32, 93.53, _NC),
    "res2net50_26w_4s": (_RES_CODE, "25.70", "4.2", 77.99, 93.85, _NC),
    "res2net50_14w_8s": (_RES_CODE, "25.06", "4.2", 78.14, 93.86, _NC),
    "res2net50_26w_6s": (_RES_CODE, "37.05", "6.3", 78.58, 94.13, _NC),
    "res2net50_26w_8s": (_RES_CODE, "48.40", "8.3", 79.20, 94.37, _NC),
    "res2net101_26w_4s": (_RES_CODE, "45.21", "8.1", 79.19, 94.43, _NC),
    "res2next50": (_RES_CODE, "24.67", "4.2", 78.24, 93.91, _NC),
    "se_res2net50": (_RES1, None, None, 78.44, 94.06, None),
    "res2net50_v1b": (_RES_CODE, "25.72", "4.5", 80.27, 95.04, _NC),
    "res2net101_v1b": (_RES_CODE, "45.23", "8.3", 81.23, 95.36, _NC),
    "res2net152_v1b": (None, None, None, None, None, _NC),
    "res2net_dla60": (_RES_CODE, "21.15", "4.2", 78.47, 94.20, _NC),
    "res2next_dla60": (_RES_CODE, "17.33", "3.6", 78.45, 94.14, _NC),
    "res2next29_8cx25wx4s": ("SIS paper, table 1", None, None, 83.07, None, None),
    "ac_resnet50": ("ACNet paper, table 1", "29.38", None, 77.5, None, _NONE),
    "ac_pixel_resnet50": ("ACNet paper, table 1", "31.85", None, 77.5, None, _NONE),
}

_PY4 = "PyConv paper, table 4"

# Name: table, parameters, multiply-accumulates with the auxiliary head, mean IoU, pixel accuracy, licence.
_SEGMENTATION_ROWS: dict[str, tuple[str, str, str, float, float, str | None]] = {
    "pyconv_segnet_resnet50": (_PY4, "34.40", "116.84", 41.54, 80.18, _NONE),
    "pyconv_segnet_resnet101": (_PY4, "53.39", "185.47", 42.88, 80.75, _NONE),
    "pyconv_segnet_resnet152": (_PY4, "69.03", "242.00", 44.04, 81.18, _NONE),
    "pyconv_segnet_pyconv_resnet50": (_PY4, "33.69", "114.18", 42.08, 80.31, _NONE),
    "pyconv_segnet_pyconv_resnet101": (_PY4, "51.15", "177.29", 42.93, 80.91, _NONE),
    "pyconv_segnet_pyconv_resnet152": (_PY4, "65.48", "229.11", 44.36, 81.54, _NONE),
    "seg_baseline_resnet50": ("PyConv supplement, table 6", "35.42", "131.37", 37.87, 78.17, None),
}


def _published() -> dict[str, Published]:
    rows = {name: Published(*row[:5], weights=row[5]) for name, row in _ROWS.items()}
    for name, (table, parameters, macs, miou, accuracy, weights) in _SEGMENTATION_ROWS.items():
        rows[name] = Published(table, parameters, macs, miou=miou, pixel_accuracy=accuracy, weights=weights)
    return rows


PUBLISHED = MappingProxyType(_published())
