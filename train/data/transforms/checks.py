"""Checks the arguments of transforms; error messages start with the argument's name."""


def in_range(transform: object, **ranges: tuple[float, float]) -> None:
    """Raises ValueError unless each named argument is a number in its closed range."""
    for name, (low, high) in ranges.items():
        value = getattr(transform, name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r} but must be a number from {low:g} to {high:g}")


def is_interval(transform: object, **ranges: tuple[float, float]) -> None:
    """Raises ValueError unless each named argument is an ascending pair above `low`, at most `high`."""
    for name, (low, high) in ranges.items():
        value = getattr(transform, name)
        is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(v) in (int, float) for v in value)
        if not is_pair or not low < value[0] <= value[1] <= high:
            raise ValueError(f"{name} is {value!r} but must be two rising numbers above {low:g}, at most {high:g}")


def has_three_channels(shape: tuple[int, int, int], name: str, value: object) -> None:
    """Raises ValueError unless images have 3 channels."""
    if shape[-1] != 3:
        raise ValueError(
            f"{name} is {value!r} but needs images of 3 channels, and these have {shape[-1]}; leave it out"
        )
