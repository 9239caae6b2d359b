"""Files of weights, read without running anything that is in them.

Voices are passed around as pickles, and a pickle may hold code. PyTorch's restricted unpickler builds tensors
and plain containers only; whatever else a file asks for is refused before it exists.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autovoice_export.build_errors import ImportFailure


def load_pickle(path: Path, what: str) -> dict[str, Any]:
    """Reads a dictionary that ``torch.save`` wrote.

    Args:
        path: the file.
        what: what it should be, for messages.

    Raises:
        ImportFailure: no such file, damaged, holding more than tensors and plain values, or no dictionary.
    """
    require_file(path, what)
    try:
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
    """Raises unless there is such a file.

    Raises:
        ImportFailure: there is not.
    """
    if not path.is_file():
        raise ImportFailure(f"{what} {path} does not exist or is no file: name another")


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
