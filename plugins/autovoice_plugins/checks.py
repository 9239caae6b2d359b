"""Argument checks shared by the implementations: they work on anything that has a shape."""

from __future__ import annotations

from typing import Protocol


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def require_shape(name: str, tensor: _Shaped, expected: tuple[int | None, ...], meaning: str) -> None:
    """Raises unless `tensor` has the shape `expected`, where None stands for any size.

    Args:
        name: The argument's name, for the message.
        tensor: A NumPy array or a torch tensor.
        expected: One entry per axis.
        meaning: The shape in words, such as "[B, 240 F]".

    Raises:
        ValueError: The rank or a size differs.
    """
    shape = tuple(tensor.shape)
    if len(shape) == len(expected) and all(
        want is None or want == got for want, got in zip(expected, shape, strict=True)
    ):
        return
    raise ValueError(f"{name} has shape {list(shape)}, but {meaning} is needed; reshape it.")


def require_whole_blocks(name: str, samples: int, hop: int) -> int:
    """Returns how many blocks of `hop` samples there are.

    Raises:
        ValueError: There is no block, or the last one is incomplete.
    """
    if samples < hop or samples % hop:
        raise ValueError(
            f"{name} has {samples} samples, which is not a multiple of {hop}; pad it with zeros."
        )
    return samples // hop
