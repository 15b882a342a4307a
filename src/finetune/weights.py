"""Model files as tensors, one at a time: no process ever holds, or maps, more than one shard file of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2**30  # what rank 0 holds besides its own share while it writes; transformers reads shards of any size


class WeightFiles:
    """The safetensors of a model folder, in file order.

    Attributes:
        shapes: of every tensor, by name.

    Raises:
        ValueError: the folder's weights are incomplete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        try:
            self._files = self._listed()
            for file in self._files:
                with safe_open(folder / file, framework="pt") as tensors:
                    self.shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, ValueError, KeyError, SafetensorError) as fault:
            raise ValueError(f"the weights in {folder} cannot be read ({fault}): get the model again, whole") from None

    def _listed(self) -> list[str]:
        if (self._folder / INDEX).is_file():
            index = json.loads((self._folder / INDEX).read_text(encoding="utf-8"))
            return sorted(set(index["weight_map"].values()))
        return [WHOLE]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor, on the CPU, in the order of `shapes`. One file is mapped at a time: maps count as address space."""
        for file in self._files:
            with safe_open(self._folder / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    yield name, tensors.get_tensor(name).clone()  # a copy: the map goes with the file


def write(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as transformers reads them, shard by shard as they come."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_file(held, folder / f".shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))] if len(shards) > 1 else [WHOLE]
    for number, file in enumerate(names):
        (folder / f".shard-{number}").rename(folder / file)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
