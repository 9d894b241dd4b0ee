"""TFRecord files and tf.train.Example without TensorFlow.

A file is a run of records: length (uint64, little-endian), masked CRC-32C of these 8 bytes, data, masked CRC-32C of the
data. (TensorFlow, core/lib/io/record_writer.h) Both checksums are checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mmdiff.errors import DataError, require
from mmdiff.tasks.vla.data.reading import check_regular


def records(path: Path) -> Iterator[bytes | DataError]:
    """The records of a file, one in memory at a time; instead of a damaged one, the error that it causes.

    After a damaged length no record can be found, so the file ends there; after damaged data the next record follows.
    """
    try:
        size = check_regular(path)
    except DataError as error:
        yield error
        return
    try:
        with open(path, "rb") as file:
            number = 0
            while head := file.read(12):
                where = f"{path} record {number}"
                if len(head) < 12:
                    yield DataError(f"{where}: the file is cut off")
                    return
                length, check = struct.unpack("<QI", head)
                if masked_crc32c(head[:8]) != check:
                    yield DataError(f"{where}: damaged length, or no TFRecord file; nothing after it can be read")
                    return
                body = file.read(min(length + 4, size))
                if len(body) < length + 4:
                    yield DataError(f"{where}: the file is cut off")
                    return
                data = body[:length]
                if masked_crc32c(data) != struct.unpack("<I", body[length:])[0]:
                    yield DataError(f"{where}: damaged data (checksum)")
                else:
                    yield data
                number += 1
    except OSError as error:
        yield DataError(f"{path}: {error.strerror}")


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, B.4), rotated right by 15 bits, plus 0xa282ead8. Raises MissingExtra."""
    require("google_crc32c", "vla")
    from google_crc32c import value

    crc: int = value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def example(data: bytes) -> Mapping[str, Any]:
    """The features of a serialised tf.train.Example: lists of bytes, float32 or int64 values, as protobuf holds them.

    Raises ValueError for what is no Example.
    """
    message_class, error = _example_class()
    message = message_class()
    try:
        message.ParseFromString(data)
    except error:
        raise ValueError("not a tf.train.Example") from None
    features = message.features.feature
    kinds = {name: features[name].WhichOneof("kind") for name in features}
    return {name: getattr(features[name], kind).value if kind else () for name, kind in kinds.items()}


@cache
def _example_class() -> tuple[Any, type[Exception]]:
    """The message class, from its published description (tensorflow/core/example/example.proto, feature.proto).

    protobuf is there wherever tensorboard is.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

    of = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mmdiff_example.proto", package="mmdiff_example", syntax="proto3")
    lists = {"BytesList": of.TYPE_BYTES, "FloatList": of.TYPE_FLOAT, "Int64List": of.TYPE_INT64}
    for name, kind in lists.items():
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=of.LABEL_REPEATED)

    def add(message: Any, name: str, number: int, of_type: str, **rest: Any) -> None:
        rest = {"label": of.LABEL_OPTIONAL, **rest}
        type_name = f".mmdiff_example.{of_type}"
        message.field.add(name=name, number=number, type=of.TYPE_MESSAGE, type_name=type_name, **rest)

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), 1):
        add(feature, name, number, list(lists)[number - 1], oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=of.TYPE_STRING, label=of.LABEL_OPTIONAL)
    add(entry, "value", 2, "Feature")
    add(features, "feature", 1, "Features.FeatureEntry", label=of.LABEL_REPEATED)
    add(file.message_type.add(name="Example"), "features", 1, "Features")

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mmdiff_example.Example")), message.DecodeError
