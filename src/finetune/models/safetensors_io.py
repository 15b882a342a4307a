"""Model files read and written one tensor at a time: no process holds, or maps, them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_prep.user_error import UserError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SHARD_BYTES = (
    2**30
)  # what rank 0 holds besides its own share while it writes; transformers reads shards of any size


class WeightFiles:
    """The safetensors of a model folder, in file order.

    They are read, not mapped: safetensors' own reader maps a whole file twice, and maps count as address
        space.

    Attributes:
        shapes: of every tensor, by name.

    Raises:
        UserError: the folder's weights are incomplete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, torch.dtype, int]] = {}  # name -> file, dtype, first byte
        try:
            for file in _listed(folder):
                self._read_header(folder / file)
        except (OSError, ValueError, KeyError) as fault:
            raise UserError(
                f"the weights in {folder} cannot be read ({fault}): get the model again, whole"
            ) from None

    def _read_header(self, path: Path) -> None:
        """The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, the header,
        the numbers."""
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        if path.stat().st_size != 8 + length + max(entry["data_offsets"][1] for _, entry in entries):
            raise ValueError(f"{path.name} is truncated")
        for name, entry in entries:
            self.shapes[name] = tuple(entry["shape"])
            self._places[name] = path, DTYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor, on the CPU, in the order of `shapes`."""
        for name, (path, dtype, start) in self._places.items():
            tensor = torch.empty(self.shapes[name], dtype=dtype)
            with path.open("rb") as file:
                file.seek(start)
                file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
            yield name, tensor


def _listed(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    return [WHOLE]


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
    names = (
        [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        if len(shards) > 1
        else [WHOLE]
    )
    for number, file in enumerate(names):
        (folder / f".shard-{number}").rename(folder / file)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
