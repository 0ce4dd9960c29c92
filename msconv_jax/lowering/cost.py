"""What plans cost, on each backend: the model by which :mod:`msconv_jax.lowering.choose` chooses."""

from __future__ import annotations

import dataclasses
import math

from msconv_jax.lattice import KernelLattice
from msconv_jax.lowering.plan import Plan, Step, blocks_read, layer_steps, step_extent, step_kernel_size, step_taps


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a convolution is computed.

    Attributes:
        batch: number of images.
        output: size of the output along each spatial axis.
        strides: strides along each spatial axis.
    """

    batch: int
    output: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """Output pixels, batch included."""
        return self.batch * math.prod(self.output)

    @property
    def input_pixels(self) -> int:
        """About as many pixels as the input has, batch included."""
        return self.pixels * math.prod(self.strides)


@dataclasses.dataclass(frozen=True)
class CostModel:
    """What a plan costs on one backend, in multiply-accumulates of a wide dense convolution.

    Attributes:
        overhead: cost of one more operation.
        quantum: channels, in and out, are rounded up to a multiple of this.
        shifted: cost of a multiply-accumulate in a sum of shifts; None where it is never chosen.
        grouped: cost of a multiply-accumulate in a native grouped convolution; None where it is never chosen.
        scattered: cost of shifting and adding one product; None where it is never chosen.
        pixel: cost of each output pixel of a convolution, besides its products.
        narrowness: outputs that a convolution seems to have besides its own.
        least: a convolution with fewer channels than this on both sides takes another way, on which it seems to have
            this many outputs, and `slow_pixel` is the cost of each pixel.
        slow_pixel: see `least`.
        columns: how many columns one convolution may compute as channels.
        expands: whether a convolution may have taps of several dilations, with zeros between them.
    """

    overhead: float
    quantum: int
    shifted: float | None
    grouped: float | None
    scattered: float | None
    pixel: float = 0
    narrowness: float = 0
    least: int = 0
    slow_pixel: float = 0
    columns: tuple[int, ...] = (1,)
    expands: bool = True

    def __call__(self, lattice: KernelLattice, plan: Plan, site: Site) -> float:
        """Cost of the plan at a place."""
        return sum(self._step(lattice, step, site) for step in plan)

    def _step(self, lattice: KernelLattice, step: Step, site: Site) -> float:
        inputs, outputs = len(step.inputs) // step.groups, len(step.outputs) // step.groups
        pixels = site.pixels
        if step.way == "scatter":
            if self.scattered is None:
                return math.inf
            products = sum(
                len(part.outputs) * math.prod(lattice.banks[part.layers[0][0]].kernel_size)
                for part in layer_steps(step)
            )
            shifts = self.overhead * len(step.layers) + site.input_pixels * products * self.scattered
            return shifts + self._convolution(site.input_pixels, 1, inputs, products)
        if len(step.layers) > 1 and not self.expands:
            return math.inf
        taps = step_taps(lattice, step)
        if step.way == "shift":
            if self.shifted is None:
                return math.inf
            if inputs == 1:
                return self.overhead + pixels * taps * len(step.outputs) * self.shifted
        if step.groups > 1:
            if self.grouped is None:
                return math.inf
            return self.overhead + pixels * taps * inputs * len(step.outputs) * self.grouped
        if step.way == "shift":
            return taps * self._convolution(pixels, 1, inputs, outputs)
        if step.columns > 1:
            reach, _ = step_extent(lattice, step)
            taps = taps // step_kernel_size(lattice, step)[-1] * blocks_read(step.columns, reach[-1], site.strides[-1])
            pixels = pixels // site.output[-1] * -(-site.output[-1] // step.columns)
            inputs, outputs = inputs * step.columns * site.strides[-1], outputs * step.columns
        return self._convolution(pixels, taps, inputs, outputs)

    def _convolution(self, pixels: int, taps: int, inputs: int, outputs: int) -> float:
        inputs, outputs = (-(-channels // self.quantum) * self.quantum for channels in (inputs, outputs))
        if max(inputs, outputs) < self.least:
            return self.overhead + pixels * (self.slow_pixel + taps * inputs * self.least)
        return self.overhead + pixels * (self.pixel + taps * inputs * (outputs + self.narrowness))


# CPU, 2 cores, float32. XLA gives a convolution with more than 16 channels, in or out, to YNNPACK, which does 40 to 85
# million multiply-accumulates a millisecond on one core whatever its inputs; `pixel` and `narrowness` are fits of
# benchmarks/convolution_costs.py. Narrower ones go to Eigen. `overhead` is several times the fitted one, because a plan
# also slices and joins around each convolution; it, `slow_pixel` and `scattered` were set by timing whole plans. The
# native grouped convolution is 10 to 100 times slower than packs.
# ONNX is a format: its run-times have fast grouped convolutions on all platforms, and it has no padding between
# elements, which expanding and scattering need.
# GPU and TPU: estimates from the widths of their matrix units (tensor-core tiles of 64, a 128 x 128 array)
# and a launch of some 5 us.
COST_MODELS = {
    "cpu": CostModel(
        overhead=6e6,
        pixel=840,
        narrowness=4,
        quantum=1,
        least=17,
        slow_pixel=1000,
        columns=(1, 2, 4, 6, 8, 16),
        shifted=14.0,
        grouped=None,
        scattered=35.0,
    ),
    "gpu": CostModel(overhead=5e8, quantum=64, shifted=100.0, grouped=16.0, scattered=200.0),
    "tpu": CostModel(overhead=2e8, quantum=128, shifted=100.0, grouped=None, scattered=200.0),
    "onnx": CostModel(overhead=6e6, quantum=1, shifted=None, grouped=1.0, scattered=None, expands=False),
}
