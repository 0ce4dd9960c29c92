"""Chooses how a kernel lattice becomes a short list of fast operations: makes plans and compares their costs.

A plan is static data, made once for a lattice and cached; :mod:`msconv_jax.lowering.execute` executes it. Each
:class:`Step` reads some input channels, forms one kernel from the packed kernels and adds to some output
channels. The plans differ in how they split the lattice:

``tiles``
    One dense convolution per dilation and set of inputs. No multiplication by zero, many narrow convolutions.
``packs``
    A layer's independent blocks (the groups of a grouped convolution) merged into packs of a useful width; a pack is
    one dense convolution whose kernel has zeros outside the blocks.
``grouped``
    The native grouped convolution over the finest equal blocks.
``dense``
    One dense convolution with zeros.
``shifts``
    A sum over taps of the shifted input times weights, without a convolution: elementwise where every output
    reads one input (depthwise), a matrix product otherwise.
``columns``
    As tiles, but several neighbouring output columns are the channels of one output: a convolution of few channels
    becomes one of many channels at fewer pixels. Its kernel has zeros where an output column does not read an input
    column.
``scatter``
    For each set of inputs one matrix product with the weights of all taps of all its outputs, whose results are then
    shifted and added (known as kn2row). One wide product for any dilations, but its results take the memory of one
    output for each tap.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import numpy as np

from msconv_jax.lattice import KernelLattice
from msconv_jax.lowering.cost import COST_MODELS, Site
from msconv_jax.lowering.plan import Channels, LayerKey, Plan, Step

Lowering = Literal["auto", "tiles", "packs", "columns", "grouped", "dense", "shifts", "scatter"]
LOWERINGS: tuple[str, ...] = get_args(Lowering)

_PACK_WIDTHS = (1, 8, 16, 32, 64, 128)
_FORCED_COLUMNS = 4
_MAX_MERGED = 64  # more steps than this on the same inputs are not compared in pairs


def choose_plan(lattice: KernelLattice, lowering: str, backend: str, site: Site) -> Plan:
    """The plan for a lattice.

    Args:
        lattice: the kernel lattice.
        lowering: a name of ``LOWERINGS``; "auto" takes the cheapest plan of the backend's cost model.
        backend: a name of ``COST_MODELS``; of the forced lowerings, only the width of packs depends on it.
        site: batch size, output size and strides.

    Raises:
        ValueError: if `lowering` is not a known name.
    """
    check_lowering(lowering)
    # Rounding the batch to a power of two keeps the cache small and hardly changes the choice.
    batch = 2 ** round(math.log2(max(site.batch, 1)))
    return _choose_plan(lattice, lowering, backend, dataclasses.replace(site, batch=batch))


def check_lowering(lowering: str) -> None:
    """Raises ValueError unless `lowering` is a known name."""
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering={lowering!r}: expected one of {', '.join(LOWERINGS)}.")


@functools.lru_cache(maxsize=1024)
def _choose_plan(lattice: KernelLattice, lowering: str, backend: str, site: Site) -> Plan:
    if lowering == "auto" and len(lattice.tiles) == 1 and (lattice.rows >= 0).all():
        return _fixed_plan(lattice, "dense")  # a plain convolution: there is nothing to choose
    if lowering == "columns":
        tiles = _fixed_plan(lattice, "tiles")
        return tuple(dataclasses.replace(step, columns=_FORCED_COLUMNS) for step in tiles)
    if lowering in ("tiles", "grouped", "dense", "shifts", "scatter"):
        return _fixed_plan(lattice, lowering)
    model = COST_MODELS[backend]
    cost = functools.partial(model, lattice, site=site)
    if lowering == "packs":
        return min((_pack_plan(lattice, width) for width in _PACK_WIDTHS), key=cost)

    def best(step: Step) -> Step:
        """The step with the cheapest number of columns."""
        return min((dataclasses.replace(step, columns=count) for count in model.columns), key=lambda s: cost((s,)))

    by_layer = tuple(step for layer in _layers(lattice) for step in _layer_plan(lattice, layer, cost, best))
    plans = [_merged_plan(lattice, by_layer, cost, best), _scattered_plan(by_layer, cost)]
    return min([*plans, *(_fixed_plan(lattice, name) for name in ("dense", "grouped"))], key=cost)


@functools.lru_cache(maxsize=1024)
def _fixed_plan(lattice: KernelLattice, name: str) -> Plan:
    layers = _layers(lattice)
    if name in ("dense", "grouped"):
        groups = 1 if name == "dense" else _equal_groups(lattice)
        return (Step(tuple(range(lattice.in_features)), tuple(range(lattice.out_features)), groups, layers),)
    if name == "shifts":
        return tuple(step for layer in layers for step in _shift_steps(lattice, layer))
    tiles = tuple(Step(*rectangle, 1, (layer,)) for layer in layers for rectangle in _rectangles(lattice, layer))
    return _scattered_plan(tiles) if name == "scatter" else tiles


@functools.lru_cache(maxsize=1024)
def _pack_plan(lattice: KernelLattice, width: int) -> Plan:
    """One dense convolution per pack and layer."""
    return tuple(
        Step(*_bounds(pack), 1, (layer,)) for layer in _layers(lattice) for pack in _packs(lattice, layer, width)
    )


def _layer_plan(
    lattice: KernelLattice, layer: LayerKey, cost: Callable[[Plan], float], best: Callable[[Step], Step]
) -> Plan:
    """The cheapest plan for one layer: packs of one width, each whole or split into its rectangles, or shifts."""
    plans = [tuple(_shift_steps(lattice, layer))]
    for width in _PACK_WIDTHS:
        steps: list[Step] = []
        for pack in _packs(lattice, layer, width):
            whole = (best(Step(*_bounds(pack), 1, (layer,))),)
            split = tuple(best(Step(*rectangle, 1, (layer,))) for rectangle in pack)
            steps += min(whole, split, key=cost)
        plans.append(tuple(steps))
    return min(plans, key=cost)


def _merged_plan(
    lattice: KernelLattice, plan: Plan, cost: Callable[[Plan], float], best: Callable[[Step], Step]
) -> Plan:
    """Merges convolutions of different dilations or kernel sizes where one dense kernel for both is cheaper.

    A convolution with few outputs wastes most of its time; one convolution for two such steps wastes less, but
    multiplies by the zeros between the taps. The best pair is merged first, until no pair gains.
    """
    steps = list(plan)
    by_inputs: dict[tuple[Channels, int], list[int]] = {}
    for number, step in enumerate(steps):
        if step.way == "convolve":
            by_inputs.setdefault((step.inputs, step.groups), []).append(number)
    gains: dict[tuple[int, int], float] = {}

    def merged(first: Step, second: Step) -> Step:
        layers = tuple(sorted({*first.layers, *second.layers}))
        return best(Step(first.inputs, tuple(sorted({*first.outputs, *second.outputs})), 1, layers))

    def compare(a: int, b: int) -> None:
        first, second = steps[a], steps[b]
        # A step computes all cells of its layers on its inputs and outputs; cells of another step must not be there.
        disjoint = not (set(first.layers) & set(second.layers) or set(first.outputs) & set(second.outputs))
        if disjoint and not (_has_cells(lattice, first, second) or _has_cells(lattice, second, first)):
            gains[a, b] = cost((first,)) + cost((second,)) - cost((merged(first, second),))

    for (_, groups), numbers in by_inputs.items():
        if groups == 1 and len(numbers) <= _MAX_MERGED:
            for a, b in itertools.combinations(numbers, 2):
                compare(a, b)
    removed: set[int] = set()
    while gains and max(gains.values()) > 0:
        a, b = max(gains, key=gains.__getitem__)
        steps[a] = merged(steps[a], steps[b])
        removed.add(b)
        others = {n for pair in gains for n in pair if a in pair} - {a, b}
        gains = {pair: gain for pair, gain in gains.items() if not {a, b} & set(pair)}
        for other in others:
            compare(min(a, other), max(a, other))
    return tuple(step for number, step in enumerate(steps) if number not in removed)


def _scattered_plan(plan: Plan, cost: Callable[[Plan], float] | None = None) -> Plan:
    """Replaces the convolutions on equal inputs by one scatter; with a `cost`, only those that gain by it.

    The narrowest convolutions gain most, so they are tried first, one more at a time.
    """
    by_inputs: dict[Channels, list[Step]] = {}
    for step in plan:
        if step.way == "convolve" and step.groups == 1 and len(step.layers) == 1:
            by_inputs.setdefault(step.inputs, []).append(step)
    chosen: list[Step] = []
    replaced: set[Step] = set()
    for inputs, steps in by_inputs.items():
        steps.sort(key=lambda step: len(step.outputs))
        # One layer may come from several packs; a scatter lists each layer once.
        first_of_layer = list({step.layers[0]: step for step in reversed(steps)}.values())[::-1]
        best, gain = None, 0.0
        for count in [len(first_of_layer)] if cost is None else range(1, len(first_of_layer) + 1):
            narrowest = first_of_layer[:count]
            layers = tuple(step.layers[0] for step in narrowest)
            outputs = tuple(output for step in narrowest for output in step.outputs)
            sizes = tuple(len(step.outputs) for step in narrowest)
            scatter = Step(inputs, outputs, 1, layers, "scatter", sizes)
            if cost is None:
                best = (scatter, narrowest)
            elif (saved := cost(tuple(narrowest)) - cost((scatter,))) > gain:
                best, gain = (scatter, narrowest), saved
        if best is not None:
            chosen.append(best[0])
            replaced |= set(best[1])
    return (*(step for step in plan if step not in replaced), *chosen)


def _has_cells(lattice: KernelLattice, step: Step, other: Step) -> bool:
    """Whether a layer of `step` has cells on its inputs and the outputs of `other`."""
    rows = np.unique(lattice.row_of_output[list(other.outputs)])
    return any((layer_places(lattice, layer)[rows][:, list(step.inputs)] >= 0).any() for layer in step.layers)


# --- parts of the lattice ---

_Rectangle = tuple[Channels, Channels]  # inputs, outputs


@functools.lru_cache(maxsize=128)
def _layers(lattice: KernelLattice) -> tuple[LayerKey, ...]:
    """The pairs of bank and dilation in the lattice, in a fixed order."""
    found: list[LayerKey] = []
    for number, bank in enumerate(lattice.banks):
        tiles = np.unique(lattice.rows[lattice.bank_places(bank) >= 0])
        found += [(number, dilation) for dilation in sorted({lattice.tiles[tile].dilation for tile in tiles})]
    return tuple(found)


@functools.lru_cache(maxsize=128)
def layer_places(lattice: KernelLattice, layer: LayerKey) -> np.ndarray:
    """The place of each of the layer's cells along the bank's fan_in, as a table like `lattice.rows`; -1 elsewhere."""
    number, dilation = layer
    dilated = np.array([tile.dilation == dilation for tile in lattice.tiles] + [False])
    return np.where(dilated[lattice.rows], lattice.bank_places(lattice.banks[number]), -1)


@functools.lru_cache(maxsize=128)
def _rectangles(lattice: KernelLattice, layer: LayerKey) -> tuple[_Rectangle, ...]:
    """The layer's cells as full rectangles: outputs that read the same inputs share a rectangle."""
    present = layer_places(lattice, layer) >= 0
    inputs_of_row = {row: present[row].tobytes() for row in np.flatnonzero(present.any(axis=1))}
    by_inputs: dict[bytes, list[int]] = {}
    for output, row in enumerate(lattice.row_of_output):
        if row in inputs_of_row:
            by_inputs.setdefault(inputs_of_row[row], []).append(output)
    return tuple(
        (tuple(map(int, np.flatnonzero(present[lattice.row_of_output[outputs[0]]]))), tuple(outputs))
        for outputs in by_inputs.values()
    )


@functools.lru_cache(maxsize=512)
def _blocks(lattice: KernelLattice, layer: LayerKey) -> tuple[tuple[_Rectangle, ...], ...]:
    """The layer's independent blocks, by first output: rectangles that share inputs, even indirectly, are one block."""
    blocks: list[tuple[set[int], list[_Rectangle]]] = []
    for rectangle in _rectangles(lattice, layer):
        inputs, members = set(rectangle[0]), [rectangle]
        disjoint = []
        for block in blocks:
            if inputs.isdisjoint(block[0]):
                disjoint.append(block)
            else:
                inputs |= block[0]
                members = block[1] + members
        blocks = [*disjoint, (inputs, members)]
    return tuple(sorted((tuple(members) for _, members in blocks), key=lambda members: members[0][1][0]))


def _packs(lattice: KernelLattice, layer: LayerKey, width: int) -> list[list[_Rectangle]]:
    """The layer's rectangles by pack: blocks are merged, in order, until both sides are `width` wide."""
    packs: list[list[_Rectangle]] = [[]]
    for block in _blocks(lattice, layer):
        packs[-1] += block
        if min(map(len, _bounds(packs[-1]))) >= width:
            packs.append([])
    return [pack for pack in packs if pack]


def _bounds(rectangles: Iterable[_Rectangle]) -> _Rectangle:
    """All inputs and all outputs of the rectangles."""
    inputs, outputs = zip(*rectangles, strict=True)
    return tuple(sorted(set().union(*inputs))), tuple(sorted(set().union(*outputs)))


def _equal_groups(lattice: KernelLattice) -> int:
    """The largest number of equal, contiguous groups that the lattice respects."""
    present = lattice.rows >= 0
    first = present.argmax(axis=1)[lattice.row_of_output]
    last = lattice.in_features - 1 - present[:, ::-1].argmax(axis=1)[lattice.row_of_output]
    outputs = np.arange(lattice.out_features)

    def respected(groups: int) -> bool:
        group_of_output = outputs * groups // lattice.out_features
        return all((group_of_output == inputs * groups // lattice.in_features).all() for inputs in (first, last))

    common = math.gcd(lattice.in_features, lattice.out_features)
    return max(groups for groups in range(1, common + 1) if common % groups == 0 and respected(groups))


def _shift_steps(lattice: KernelLattice, layer: LayerKey) -> list[Step]:
    """Rectangles of equal shape as the groups of one sum of shifts."""
    by_shape: dict[tuple[int, int], list[_Rectangle]] = {}
    for inputs, outputs in _rectangles(lattice, layer):
        by_shape.setdefault((len(inputs), len(outputs)), []).append((inputs, outputs))
    return [
        Step(
            tuple(i for inputs, _ in rectangles for i in inputs),
            tuple(o for _, outputs in rectangles for o in outputs),
            len(rectangles),
            (layer,),
            way="shift",
        )
        for rectangles in by_shape.values()
    ]


# --- kernels of a step ---


@dataclasses.dataclass(frozen=True)
class Part:
    """Some columns of a step's kernel, taken from one bank.

    Attributes:
        outputs: positions of the columns among the step's outputs.
        columns: the bank's output columns.
        rows: for each input of the step (of one of its groups) the place along the bank's fan_in.
        mask: bool (inputs, columns): where there is a kernel; None if everywhere.
    """

    outputs: Channels
    columns: Channels
    rows: Channels
    mask: np.ndarray | None


@functools.lru_cache(maxsize=2048)
def kernel_parts(lattice: KernelLattice, step: Step, layer: LayerKey) -> tuple[Part, ...]:
    """The parts of the layer's bank that make a step's kernel for the layer, concatenated along the outputs."""
    inputs_of_group = np.array(step.inputs).reshape(step.groups, -1)
    group_of_output = np.repeat(np.arange(step.groups), len(step.outputs) // step.groups)
    table = layer_places(lattice, layer)
    column_of = {output: n for n, output in enumerate(lattice.banks[layer[0]].outputs)}
    parts: list[Part] = []
    # Consecutive outputs share one gather as long as their row choices agree.
    rows, outputs, places = np.array([]), [], []

    def close() -> None:
        if outputs:
            mask = np.stack(places, axis=1) >= 0
            parts.append(
                Part(
                    outputs=tuple(outputs),
                    columns=tuple(column_of[step.outputs[n]] for n in outputs),
                    rows=tuple(map(int, np.maximum(rows, 0))),
                    mask=None if mask.all() else mask,
                )
            )

    previous, choice = None, np.array([])
    for position, output in enumerate(step.outputs):
        group, row = group_of_output[position], lattice.row_of_output[output]
        if (group, row) != previous:  # outputs of one row agree: compare at a change only
            previous, choice = (group, row), table[row, inputs_of_group[group]]
            if choice.max() >= 0 and outputs and not ((rows >= 0) & (choice >= 0) & (rows != choice)).any():
                rows = np.maximum(rows, choice)
            elif choice.max() >= 0:
                close()
                rows, outputs, places = choice, [], []
        if choice.max() >= 0:
            outputs.append(position)
            places.append(choice)
    close()
    return tuple(parts)


@dataclasses.dataclass(frozen=True)
class Assembly:
    """How the outputs of a plan's steps become the outputs of the lattice.

    Attributes:
        sums: for each set of outputs of the same steps, the terms to add: (step, positions in the step's outputs).
        order: for each output channel its place in the concatenated sums.
    """

    sums: tuple[tuple[tuple[int, Channels], ...], ...]
    order: Channels


@functools.lru_cache(maxsize=1024)
def assembly(outputs_of_steps: tuple[Channels, ...]) -> Assembly:
    """The assembly for steps with these outputs."""
    terms_of: dict[int, list[tuple[int, int]]] = {}
    for step, outputs in enumerate(outputs_of_steps):
        for position, output in enumerate(outputs):
            terms_of.setdefault(output, []).append((step, position))
    outputs_of: dict[Channels, list[int]] = {}  # by the steps that compute them
    for output in sorted(terms_of):
        outputs_of.setdefault(tuple(step for step, _ in terms_of[output]), []).append(output)
    sums = tuple(
        tuple((step, tuple(terms_of[o][n][1] for o in outputs)) for n, step in enumerate(steps))
        for steps, outputs in outputs_of.items()
    )
    place = {output: n for n, output in enumerate(o for outputs in outputs_of.values() for o in outputs)}
    return Assembly(sums, tuple(place[output] for output in sorted(place)))
