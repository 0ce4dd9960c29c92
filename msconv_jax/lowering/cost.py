"""The predicted cost of plans on each backend, by which :mod:`msconv_jax.lowering.choose` chooses."""

from __future__ import annotations

import dataclasses
import math

from msconv_jax.lattice import KernelLattice
from msconv_jax.lowering.plan import Plan, Step, blocks_read, layer_steps, step_extent, step_kernel_size, step_taps


@dataclasses.dataclass(frozen=True)
class Site:
    """The size of a convolution's work.

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
        """Input pixels, batch included: the output pixels times the strides."""
        return self.pixels * math.prod(self.strides)


@dataclasses.dataclass(frozen=True)
class CostModel:
    """The cost of plans on one backend, in multiply-accumulates of a wide dense convolution.

    Attributes:
        overhead: fixed cost of one operation.
        channel_multiple: channels, in and out, are rounded up to a multiple of this.
        shifted: cost of a multiply-accumulate in a sum of shifts; None where shifts are never chosen.
        grouped: cost of a multiply-accumulate in a native grouped convolution; None where it is never chosen.
        scattered: cost of shifting and adding one product; None where scattering is never chosen.
        pixel: cost of each output pixel of a convolution, besides its products.
        extra_outputs: cost of each output pixel besides `pixel`, in output channels.
        min_channels: a convolution with fewer channels than this on both sides is slower: it costs as much as one with
            `min_channels` outputs, and `narrow_pixel` for each output pixel.
        narrow_pixel: in place of `pixel`, below `min_channels`.
        columns: numbers of output columns that one convolution may compute as channels.
        expands: whether one convolution may have taps of several dilations, with zeros between them.
    """

    overhead: float
    channel_multiple: int
    shifted: float | None
    grouped: float | None
    scattered: float | None
    pixel: float = 0.0
    extra_outputs: float = 0.0
    min_channels: int = 0
    narrow_pixel: float = 0.0
    columns: tuple[int, ...] = (1,)
    expands: bool = True

    def __call__(self, lattice: KernelLattice, plan: Plan, site: Site) -> float:
        """Cost of the plan at a site."""
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
            extent, _ = step_extent(lattice, step)
            taps = taps // step_kernel_size(lattice, step)[-1] * blocks_read(step.columns, extent[-1], site.strides[-1])
            pixels = pixels // site.output[-1] * -(-site.output[-1] // step.columns)
            inputs, outputs = inputs * step.columns * site.strides[-1], outputs * step.columns
        return self._convolution(pixels, taps, inputs, outputs)

    def _convolution(self, pixels: int, taps: int, inputs: int, outputs: int) -> float:
        multiple = self.channel_multiple
        inputs, outputs = (-(-channels // multiple) * multiple for channels in (inputs, outputs))
        if max(inputs, outputs) < self.min_channels:
            return self.overhead + pixels * (self.narrow_pixel + taps * inputs * self.min_channels)
        return self.overhead + pixels * (self.pixel + taps * inputs * (outputs + self.extra_outputs))


# CPU, 2 cores, float32. YNNPACK computes convolutions with more than 16 channels, in or out: 40 to 85 million
# multiply-accumulates a millisecond on one core for any number of inputs; `pixel` and `extra_outputs` are fits of
# benchmarks/convolution_costs.py. Eigen computes narrower ones. `overhead` is several times the fitted one, because a
# plan also slices and concatenates around each convolution; `overhead`, `narrow_pixel` and `scattered` were set by
# timing whole plans. The native grouped convolution is 10 to 100 times slower than packs.
# ONNX is a format: its run-times have fast grouped convolutions on all platforms, and it has no padding between
# elements, which expanding and scattering need.
# GPU and TPU: estimates from the widths of their matrix units (tensor-core tiles of 64, a 128 x 128 array)
# and a launch of some 5 us.
COST_MODELS: dict[str, CostModel] = {
    "cpu": CostModel(
        overhead=6e6,
        pixel=840.0,
        extra_outputs=4.0,
        channel_multiple=1,
        min_channels=17,
        narrow_pixel=1000.0,
        columns=(1, 2, 4, 6, 8, 16),
        shifted=14.0,
        grouped=None,
        scattered=35.0,
    ),
    "gpu": CostModel(overhead=5e8, channel_multiple=64, shifted=100.0, grouped=16.0, scattered=200.0),
    "tpu": CostModel(overhead=2e8, channel_multiple=128, shifted=100.0, grouped=None, scattered=200.0),
    "onnx": CostModel(overhead=6e6, channel_multiple=1, shifted=None, grouped=1.0, scattered=None, expands=False),
}
