# SPDX-License-Identifier: MIT
"""Reading other people's model files without trusting them.

A zip's directory is checked against stated limits before a member is read, and a pickle's names
are read, without running it, before torch's restricted loader (``weights_only=True``) sees it: that
loader executes nothing foreign, but can be told to make tensors of any size. Files that break a
rule are refused as ValueError.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
from torch import Tensor

# A Nature network with three copies of its extractor and its optimizer's state takes 40 MB.
MAX_ARCHIVE_BYTES = 512 << 20
MAX_MEMBERS = 1024
MAX_DIRECTORY_BYTES = 256 << 10
MAX_PICKLE_BYTES = 1 << 20  # the names and shapes of thousands of tensors

_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_ENCRYPTED = 0x1
# What zipfile raises over damaged files.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, struct.error,
)  # fmt: skip

# What a state dict is pickled from; torch's loader would accept more.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage"
)
_NAMES_A_GLOBAL = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}


@dataclass(frozen=True)
class Source:
    """Who reads which file, for messages.

    Attributes:
        function: Named first in errors.
        path: Of the file.
    """

    function: str
    path: Path

    def refuse(self, constraint: str, got: object) -> ValueError:
        """The error that says what the file must be and is not."""
        return ValueError(f"{self.function}: {self.path} must {constraint}, got {got}")

    def cannot(self, what: str, remedy: str) -> ValueError:
        """The error for a sound file that asks for what is not served."""
        return ValueError(f"{self.function}: {self.path} {what}; {remedy}")

    def open(self) -> BinaryIO:
        """The file, if it is one and not too large."""
        if not self.path.is_file():
            raise self.refuse("be a file", "a directory" if self.path.is_dir() else "none")
        size = self.path.stat().st_size
        if size > MAX_ARCHIVE_BYTES:
            raise self.refuse(f"have at most {MAX_ARCHIVE_BYTES:,} bytes", f"{size:,}")
        return self.path.open("rb")


def read_members(
    source: Source, file: BinaryIO, limits: Mapping[str, int], *, what: str = "zip archive"
) -> dict[str, bytes]:
    """Members of a zip archive, after its directory was found sound.

    Args:
        source: For messages.
        file: Open for reading, seekable.
        limits: Member -> the most bytes it may have, unpacked. Members that are not there are
            left out of the result.
        what: The archive's name in messages.

    Raises:
        ValueError: Not a zip archive, or one that is truncated, encrypted, too large, or has
            duplicate names or names that lead elsewhere.
    """
    _check_end(source, file, what)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = _checked_directory(source, archive.infolist(), what)
            return {
                name: _read(source, archive, infos[name], limit, what)
                for name, limit in limits.items()
                if name in infos
            }
    except _DAMAGED as error:
        raise source.refuse(f"be a sound {what}", error) from error


def read_tensors(source: Source, payload: bytes, what: str) -> dict[str, Any]:
    """What ``torch.save`` wrote, a dictionary of tensors or of plain values.

    Args:
        source: For messages.
        payload: The file's bytes.
        what: The file's name in messages.

    Raises:
        ValueError: Not torch's zip format, damaged, or holding anything but tensors and plain
            values; nothing is executed and nothing large is made.
    """
    file = io.BytesIO(payload)
    _check_end(source, file, what)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = _checked_directory(source, archive.infolist(), what)
            packed = [name for name, info in infos.items() if info.compress_type != _STORED]
            if packed:
                raise source.refuse(f"hold uncompressed records in {what}", repr(packed[0]))
            pickles = [name for name in infos if PurePosixPath(name).name == "data.pkl"]
            if len(pickles) != 1:
                raise source.refuse(f"hold one data.pkl in {what}", len(pickles))
            program = _read(source, archive, infos[pickles[0]], MAX_PICKLE_BYTES, what)
    except _DAMAGED as error:
        raise source.refuse(f"hold a sound {what}", error) from error
    _check_pickle(source, program, what)
    try:
        loaded = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    # Whatever a damaged file makes torch raise; interrupts and exits pass.
    except Exception as error:
        line = str(error).split("\n", 1)[0]
        raise source.refuse(f"hold tensors in {what}", f"{type(error).__name__}: {line}") from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise source.refuse(f"hold named tensors in {what}", type(loaded).__name__)
    return loaded


def checked_tensors(source: Source, tensors: Mapping[str, Any], payload_bytes: int) -> None:
    """Refuse tensors that are not plain finite floats, or that unfold into more than was read.

    Args:
        source: For messages.
        tensors: Those that will be copied into a network.
        payload_bytes: Size of the file that they came from.
    """
    total = 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise source.refuse(f"hold a tensor {name!r}", type(tensor).__name__)
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise source.refuse(f"hold dense floats in {name!r}", f"{tensor.layout} {tensor.dtype}")
        if not tensor.is_contiguous():  # a stride of 0 makes gigabytes of one number
            raise source.refuse(f"hold a contiguous {name!r}", f"strides {list(tensor.stride())}")
        total += tensor.nbytes
        if total > payload_bytes:
            raise source.refuse(
                f"hold tensors of no more than its {payload_bytes:,} bytes", f"{total:,} in {name}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise source.refuse(f"hold finite weights in {name!r}", "NaN or infinity")


def _check_end(source: Source, file: BinaryIO, what: str) -> None:
    # zipfile reads a directory of whatever size the end record says; so that one is read first.
    size = file.seek(0, io.SEEK_END)
    tail_bytes = min(size, 0xFFFF + _END.size + _LOCATOR64.size + _END64.size)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    start = tail.rfind(b"PK\x05\x06")
    if start < 0 or len(tail) - start < _END.size:
        raise source.refuse(f"be a complete {what}", "no end of a zip directory; truncated?")
    *_, members, directory_bytes, _, _ = _END.unpack_from(tail, start)
    locator = start - _LOCATOR64.size
    if tail[max(0, locator) : start].startswith(b"PK\x06\x07"):  # torch always writes one
        begin = locator - _END64.size
        *_, offset, _ = _LOCATOR64.unpack_from(tail, locator)
        if begin < 0 or size - tail_bytes + begin != offset:
            raise source.refuse(f"be a complete {what}", "a zip64 directory elsewhere")
        *_, members, directory_bytes, _ = _END64.unpack_from(tail, begin)
    if members > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
        raise source.refuse(
            f"list at most {MAX_MEMBERS:,} members in {MAX_DIRECTORY_BYTES:,} bytes of {what}",
            f"{members:,} in {directory_bytes:,}",
        )
    file.seek(0)


def _checked_directory(
    source: Source, infos: list[zipfile.ZipInfo], what: str
) -> dict[str, zipfile.ZipInfo]:
    named: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if ".." in parts or "\\" in info.filename or info.filename.startswith("/"):
            raise source.refuse(f"name members inside {what}", repr(info.filename))
        if info.filename in named:
            raise source.refuse(f"name each member of {what} once", f"{info.filename!r} twice")
        if info.flag_bits & _ENCRYPTED:
            raise source.refuse(f"be unencrypted in {what}", f"{info.filename!r} encrypted")
        if info.compress_type not in (_STORED, _DEFLATED):
            raise source.refuse(
                f"be stored or deflated in {what}",
                f"{info.filename!r} with method {info.compress_type}",
            )
        total += info.file_size
        if total > MAX_ARCHIVE_BYTES:
            raise source.refuse(
                f"unpack to at most {MAX_ARCHIVE_BYTES:,} bytes of {what}",
                f"{total:,} with {info.filename!r}",
            )
        named[info.filename] = info
    return named


def _read(
    source: Source, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, what: str
) -> bytes:
    if info.file_size > limit:
        raise source.refuse(
            f"have at most {limit:,} bytes in {info.filename!r} of {what}", f"{info.file_size:,}"
        )
    with archive.open(info) as member:
        # One byte more than allowed: also reaches the end, where the checksum is compared.
        return member.read(limit + 1)


def _check_pickle(source: Source, program: bytes, what: str) -> None:
    """Refuse a pickle that names anything but what tensors are rebuilt with."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name not in _NAMES_A_GLOBAL:
                continue
            name = str(argument) if opcode.name == "GLOBAL" else opcode.name
            if not _HARMLESS.fullmatch(name):
                raise source.refuse(
                    f"hold nothing but tensors and plain values in {what}", repr(name)
                )
    except (ValueError, UnicodeDecodeError) as error:
        if str(error).startswith(source.function):
            raise
        raise source.refuse(f"hold a readable data.pkl in {what}", error) from error
