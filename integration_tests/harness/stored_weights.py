"""Weights on disk, read without torch: no process has to be started to compare two models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import deserialize

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def values(self) -> np.ndarray:
        """Its values, flat, in float64."""
        if self.dtype == "BF16":  # the upper half of a float32
            return (np.frombuffer(self.data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
        return np.frombuffer(self.data, TYPES[self.dtype]).astype(np.float64)


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a saved model or adapter.

    After `rl: dpo` the host leaves a `model.safetensors` beside an adapter it trained in one process: not the result.
    """
    adapter = (folder / "adapter_config.json").exists()
    files = sorted(folder.glob("adapter_model*.safetensors" if adapter else "model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no safetensors in {folder}: {sorted(path.name for path in folder.iterdir())}")
    return files


def stored_weights(folder: str | Path) -> dict[str, Stored]:
    """Every tensor of a saved model or adapter, by name."""
    return {
        name: Stored(found["dtype"], tuple(found["shape"]), bytes(found["data"]))
        for path in weight_files(Path(folder))
        for name, found in deserialize(path.read_bytes())
    }


def differences(one: str | Path, other: str | Path) -> dict[str, float]:
    """The largest and the mean absolute difference of weights; both must hold the same tensors in the same shapes."""
    left, right = stored_weights(one), stored_weights(other)
    if left.keys() != right.keys():
        raise ValueError(f"different tensors: {sorted(left.keys() ^ right.keys())}")
    for name, tensor in left.items():
        if tensor.shape != right[name].shape:
            raise ValueError(f"{name}: {tensor.shape} against {right[name].shape}")
    apart = np.concatenate([np.abs(tensor.values() - right[name].values()) for name, tensor in left.items()])
    return {"max": float(apart.max()), "mean": float(apart.mean())}


def weights_digest(folder: str | Path) -> str:
    """A digest of names, types, shapes and bits: equal only for bit-identical weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(stored_weights(folder).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def weights_digests(folders: Sequence[str | Path]) -> list[str]:
    """The digest of the weights of each folder."""
    return [weights_digest(folder) for folder in folders]
