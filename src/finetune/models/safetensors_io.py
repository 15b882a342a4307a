"""Reading safetensors files tensor by tensor, and writing them shard by shard, so that no process
holds or maps a whole model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_prep.user_error import UserError

SINGLE_FILE = "model.safetensors"
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
# Maximum size of a shard. While rank 0 writes, it holds a shard in memory besides its share of the
# model. transformers reads shards of any size.
SHARD_BYTES = 2**30


class WeightFiles:
    """The tensors in a model folder's safetensors files, in file order.

    The files are read, not memory-mapped. safetensors' own reader maps a file twice, and maps count
    as address space, which may be limited in a job.

    Attributes:
        shapes: shape of each tensor, by name.

    Raises:
        UserError: the weights are incomplete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        # file, dtype and byte offset of each tensor, by name
        self._places: dict[str, tuple[Path, torch.dtype, int]] = {}
        try:
            for file in _list_files(folder):
                self._read_header(folder / file)
        except (OSError, ValueError, KeyError) as fault:
            raise UserError(
                f"{folder}: its weights cannot be read ({fault}); download the model again"
            ) from None

    def _read_header(self, path: Path) -> None:
        """Read a file's header.

        A file consists of the header's length in 8 bytes, the header in JSON, and the numbers
        (https://huggingface.co/docs/safetensors).

        Raises:
            ValueError: the file is truncated.
        """
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
        """Yield names and tensors, on the CPU, in the order of `shapes`."""
        for name, (path, dtype, start) in self._places.items():
            tensor = torch.empty(self.shapes[name], dtype=dtype)
            with path.open("rb") as file:
                file.seek(start)
                file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
            yield name, tensor


def _list_files(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    return [SINGLE_FILE]


def write(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors in the format of transformers, one shard at a time.

    Args:
        shard_bytes: maximum size of a shard; only a larger single tensor exceeds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    shard_size = 0
    total_size = 0

    def flush() -> None:
        save_file(shard, folder / f".shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and shard_size + tensor.nbytes > shard_bytes:
            flush()
            shard_size = 0
        shard[name] = tensor.contiguous()
        shard_size += tensor.nbytes
        total_size += tensor.nbytes
    flush()
    files = [SINGLE_FILE]
    if len(shards) > 1:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for number, file in enumerate(files):
        (folder / f".shard-{number}").rename(folder / file)
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
