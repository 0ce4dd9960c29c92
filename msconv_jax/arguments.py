"""Checks of arguments that every part of the library shares."""

__all__ = ["check_positive"]


def check_positive(name: str, value: object, way_out: str) -> None:
    """Raises `ValueError` unless `value` is an integer of at least 1.

    Args:
        name: the argument's name, for the message.
        value: its value.
        way_out: what the reader of the message can do instead.

    Raises:
        ValueError: if `value` is not an integer or less than 1.

    Example:
        >>> check_positive("width", 16, "use 16")
        >>> check_positive("width", 0, "use 16")
        Traceback (most recent call last):
        ValueError: width=0: must be an integer of at least 1; use 16
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be an integer of at least 1; {way_out}")
