"""Files of weights, read without running anything that is in them.

Voices are passed around as pickles, and a pickle may hold code. PyTorch's restricted unpickler builds tensors
and plain containers only. NumPy's numbers and a few classes that hold data are read by stand-ins of ours,
which run nothing; whatever else a file asks for is refused before it exists.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autovoice_export.build_errors import ImportFailure
from autovoice_export.rvc.file_kinds import other_kind

_NUMBERS = "biufSU"
"""Kinds of NumPy's types whose values are read."""


class Inert:
    """Stands for an object that is no weight or setting: it drops what it is given."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Type:
    """Stands for `numpy.dtype`: its name and byte order are all that a number needs."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


def _scalar(kind: Any, data: Any = b"") -> Any:
    """The number or text of a NumPy scalar; stands for the function that unpickles one."""
    if not (isinstance(kind, _Type) and isinstance(data, bytes) and re.fullmatch(r"[a-zA-Z]\d*", kind.name)):
        raise pickle.UnpicklingError("a NumPy scalar that is no number")
    numpy_type = np.dtype(kind.name)
    if numpy_type.kind not in _NUMBERS or kind.order not in "<>=|":
        raise pickle.UnpicklingError("a NumPy scalar that is no number")
    order: Any = kind.order
    return np.frombuffer(data, numpy_type.newbyteorder(order), count=1)[0].item()


_NUMPY = ("numpy.core", "numpy._core")
_STAND_INS: tuple[tuple[Any, str], ...] = (
    (_Type, "numpy.dtype"),
    *((_scalar, f"{package}.multiarray.scalar") for package in _NUMPY),
    *((Inert, f"{package}.multiarray._reconstruct") for package in _NUMPY),
    *((Inert, name) for name in ("numpy.ndarray", "argparse.Namespace", "types.SimpleNamespace")),
    *(
        (Inert, f"pathlib.{name}")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    *((Inert, f"datetime.{name}") for name in ("date", "datetime", "time", "timedelta", "timezone")),
)


def load_pickle(path: Path, what: str, inert: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a dictionary that ``torch.save`` wrote.

    Args:
        path: the file.
        what: what it should be, for messages.
        inert: further classes, by module and name, whose objects are dropped.

    Raises:
        ImportFailure: no such file, damaged, holding more than tensors and plain values, or no dictionary.
    """
    require_file(path, what)
    stand_ins: list[Any] = [*_STAND_INS, *((Inert, name) for name in inert)]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that are read all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise ImportFailure(
                f"{path} asks for {named[1]}, which no {what} needs: such a file can run code when it is "
                "opened, so it was refused and nothing in it was run; have its maker save the tensors alone"
            ) from error
        raise ImportFailure(_damaged(path, what)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise ImportFailure(_damaged(path, what)) from error
    except Exception as error:  # a damaged pickle can stumble over anything
        raise ImportFailure(_damaged(path, what)) from error
    if not isinstance(content, dict):
        raise ImportFailure(f"{path} holds a {type(content).__name__}, a {what} is a dictionary")
    return content


def load_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        ImportFailure: no such file, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_file(path, what)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ImportFailure(_damaged(path, what)) from error
    return tensors


def require_file(path: Path, what: str) -> None:
    """Raises unless there is such a file, and nothing says that it is of another kind.

    Raises:
        ImportFailure: the message says what it is.
    """
    if path.is_dir():
        raise ImportFailure(f"{what} {path} is a folder: name the file inside")
    if not path.is_file():
        raise ImportFailure(f"{what} {path} does not exist or is no file: name another")
    try:
        kind = other_kind(path)
    except OSError as error:
        raise ImportFailure(f"{what} {path} cannot be read: {error.strerror}") from error
    if kind:
        raise ImportFailure(f"{path} is no {what}, it {kind}")


def require_tensors(
    found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], path: Path, what: str
) -> dict[str, Tensor]:
    """Returns the wanted tensors as float32.

    Raises:
        ImportFailure: lists every tensor that is missing, of another shape, or not finite, and those that do
            not belong there.
    """
    faults = [f"{name} is missing" for name in wanted if name not in found]
    tensors = {}
    for name, value in found.items():
        if name not in wanted:
            faults.append(f"{name} is unknown")
        elif not isinstance(value, Tensor) or not value.is_floating_point():
            faults.append(f"{name} is no tensor of floats")
        elif tuple(value.shape) != wanted[name]:
            faults.append(f"{name} is {list(value.shape)} and should be {list(wanted[name])}")
        elif not bool(torch.isfinite(value).all()):
            faults.append(f"{name} holds values that are not finite")
        else:
            tensors[name] = value.detach().to(torch.float32)
    if faults:
        shown = "; ".join(faults[:12]) + (f"; and {len(faults) - 12} more" if len(faults) > 12 else "")
        raise ImportFailure(f"{path} is no complete {what}: {shown}")
    return tensors


def _damaged(path: Path, what: str) -> str:
    return f"{path} is no {what}, or is truncated: check its size and get it again"
