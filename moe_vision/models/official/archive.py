# SPDX-License-Identifier: Apache-2.0
"""The zip files of ``torch.save``: a pickle, and the bytes of each storage."""

import zipfile
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from moe_vision.models.official.unpickler import Storage, StoredTensor, Unpickler, damage_is_value_error

MAX_PICKLE_BYTES = 4 * 2**20  # that of the released network n has 0.2 MB
LEGACY = b"\x80"  # files before torch 1.6 start with a pickle


class TorchArchive:
    """An open file of ``torch.save``; tensors are read one by one, when they are asked for.

    Args:
        path: The file.

    Raises:
        ValueError: If it is not such a file, is damaged, or holds what no file of weights needs.

    Examples:
        >>> import tempfile, torch
        >>> from moe_vision.models.official.archive import TorchArchive
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"bias": torch.tensor([1.0, 2.0])}, f"{folder}/weights.pt")
        ...     with TorchArchive(f"{folder}/weights.pt") as archive:
        ...         archive.tensor(archive.root["bias"])
        tensor([1., 2.])
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        _check_beginning(path)
        with damage_is_value_error():
            self._zip = zipfile.ZipFile(path)
        try:
            with damage_is_value_error():
                self._entries = self._checked_entries(path.stat().st_size)
                self.root = self._unpickle()
        except ValueError:
            self._zip.close()
            raise
        self._last: tuple[Storage, Tensor] | None = None

    def __enter__(self) -> "TorchArchive":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._zip.close()

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read one tensor."""
        with damage_is_value_error():
            if self._last is None or self._last[0] != stored.storage:
                self._last = stored.storage, self._read_storage(stored.storage)
            return self._last[1].as_strided(stored.shape, stored.stride, stored.offset)

    def _read_storage(self, storage: Storage) -> Tensor:
        if not storage.numel:
            return torch.empty(0, dtype=storage.dtype)
        content = bytearray(self._zip.read(self._entries[f"data/{storage.key}"]))
        return torch.frombuffer(content, dtype=storage.dtype)

    def _checked_entries(self, file_bytes: int) -> dict[str, zipfile.ZipInfo]:
        """Return the entries by their names in the archive's one folder."""
        entries = self._zip.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is a compressed zip file, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > file_bytes:
            raise ValueError("its entries claim more bytes than it has")
        pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip file, but not one of torch.save: it must hold one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        return {entry.filename.removeprefix(folder): entry for entry in entries}

    def _unpickle(self) -> object:
        entry = self._entries["data.pkl"]
        if entry.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its pickle must have at most {MAX_PICKLE_BYTES} bytes, got {entry.file_size}")
        if "byteorder" in self._entries and self._zip.read(self._entries["byteorder"]) != b"little":
            raise ValueError("its byte order must be little, the one of common processors")
        sizes = {name[5:]: entry.file_size for name, entry in self._entries.items() if name.startswith("data/")}
        return Unpickler(self._zip.read(entry), sizes).load()


def _check_beginning(path: Path) -> None:
    with damage_is_value_error():
        if zipfile.is_zipfile(path):
            return
    with path.open("rb") as file:
        beginning = file.read(MAX_PICKLE_BYTES)
    if not beginning:
        raise ValueError("it is empty")
    if beginning[:1] == LEGACY:
        Unpickler(beginning, {}).load()  # whoever would load it should know first what it refers to
        raise ValueError(
            "it is a bare pickle, the format of torch before 1.6; where you trust it, write it anew with "
            "torch.save(torch.load(path), path)"
        )
    raise ValueError("it is truncated" if beginning[:2] == b"PK" else "it is no file of torch.save")
