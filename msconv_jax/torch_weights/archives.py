"""Reads the two formats of ``torch.save``: a zip archive, and, before PyTorch 1.6, pickles followed by storages."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable

from msconv_jax.torch_weights.pickled import PickledDict
from msconv_jax.torch_weights.records import Storage, WeightFile, WeightFileError, damaged, escape_text
from msconv_jax.torch_weights.unpickling import MAX_BYTES, Unpickler

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
_ENCRYPTED = 1

Contents = tuple[object, Callable[[Storage], bytes]]


def read_zip(file: WeightFile) -> Contents:
    """Reads the zip archive that ``torch.save`` writes since PyTorch 1.6.

    Args:
        file: the file.

    Returns:
        The saved object as the unpickler's records, and a function from a storage to its bytes.

    Raises:
        WeightFileError: if the file is damaged or has another format.
    """
    entries = _entries(file)
    roots = [name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise WeightFileError(
            "it is a zip archive, but not one of torch.save: it has no single data.pkl. If it is an archive of weight "
            "files, unpack it first."
        )
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise WeightFileError("it is a TorchScript program; save model.state_dict() alone, best as safetensors.")

    def content(name: str) -> bytes:
        if name not in entries:
            raise damaged(f"its entry {escape_text(name)} is missing")
        start, info = entries[name]
        data = file.part(start, info.file_size)
        if zlib.crc32(data) != info.CRC:
            raise WeightFileError(
                f"the checksum of its entry {escape_text(name)} is wrong: the file is damaged, or was written with "
                "torch.serialization.set_crc32_options(False). Download or save it again."
            )
        return data

    if f"{root}byteorder" in entries:
        order = content(f"{root}byteorder")
        if order != b"little":
            raise WeightFileError(
                f"its byte order is {order[:16]!a}, and only b'little' is read; save it as safetensors."
            )
    if entries[f"{root}data.pkl"][1].file_size > MAX_BYTES:
        raise WeightFileError(f"its pickle is longer than {MAX_BYTES} bytes; save model.state_dict() alone.")
    pickle = Unpickler(content(f"{root}data.pkl"))

    def storage_content(storage: Storage) -> bytes:
        if not storage.nbytes:
            return b""
        data = content(f"{root}data/{storage.key}")
        if len(data) != storage.nbytes:
            raise damaged(
                f"storage {escape_text(storage.key)} has {len(data)} bytes; its pickle claims {storage.nbytes}"
            )
        return data

    return pickle.load(), storage_content


def _entries(file: WeightFile) -> dict[str, tuple[int, zipfile.ZipInfo]]:
    """The entries by name, each with the offset of its data."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except WeightFileError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError, struct.error) as error:
        raise damaged(f"zip archive: {error}") from error
    entries = {}
    end = 0
    for info in sorted(listed, key=lambda info: info.header_offset):
        name = escape_text(info.filename)
        if info.filename in entries:
            raise damaged(f"two entries have the name {name}")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.flag_bits & _ENCRYPTED
            or info.compress_size != info.file_size
        ):
            raise WeightFileError(
                f"its entry {name} is compressed, which torch.save never does; unpack it and zip it with -0."
            )
        signature, *lengths = _LOCAL_HEADER.unpack(file.part(info.header_offset, _LOCAL_HEADER.size))
        if signature != b"PK\3\4" or info.header_offset < end:
            raise damaged(f"its entry {name} is not at the offset that its directory claims, or overlaps another")
        start = info.header_offset + _LOCAL_HEADER.size + sum(lengths)
        end = start + info.file_size
        if end > file.size:
            raise damaged(f"its entry {name} ends at byte {end} of {file.size}")
        entries[info.filename] = (start, info)
    return entries


def read_legacy(file: WeightFile) -> Contents:
    """Reads the format of ``torch.save`` before PyTorch 1.6.

    Args:
        file: the file.

    Returns:
        The saved object as the unpickler's records, and a function from a storage to its bytes.

    Raises:
        WeightFileError: if the file is damaged or has another format.
    """
    pickles = Unpickler(file.part(0, min(file.size, MAX_BYTES)))
    if not _is_int(pickles.load(), _LEGACY_MAGIC):
        raise WeightFileError("it is a pickle that torch.save did not write; save the arrays as safetensors.")
    if not _is_int(pickles.load(), _LEGACY_PROTOCOL):
        raise WeightFileError(f"its protocol is not {_LEGACY_PROTOCOL}; open it with PyTorch and save it again.")
    system = pickles.load()
    order = [value for key, value in system.pairs if key == "little_endian"] if isinstance(system, PickledDict) else []
    if order != [True]:
        raise WeightFileError("it was not written on a little-endian machine; open it with PyTorch and save it again.")
    saved = pickles.load()
    keys = pickles.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise damaged("its list of storages holds other values than names")
    if len(set(keys)) != len(keys) or set(keys) != pickles.storages.keys():
        raise damaged("the storages in its list are not those of its tensors")
    offsets: dict[str, int] = {}
    position = pickles.position
    for key in keys:
        storage = pickles.storages[key]
        numel = int.from_bytes(file.part(position, 8), "little", signed=True)
        if numel != storage.numel:
            raise damaged(f"storage {escape_text(key)} has {numel} elements; its pickle claims {storage.numel}")
        offsets[key] = position + 8
        position += 8 + storage.nbytes
    if position > file.size:
        raise damaged(f"its storages end at byte {position}, the file at byte {file.size}")
    return saved, lambda storage: file.part(offsets[storage.key], storage.nbytes)


def _is_int(value: object, number: int) -> bool:
    return type(value) is int and value == number
