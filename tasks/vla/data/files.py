"""The files of a LeRobotDataset that grow while episodes are written: rows in parquet, pictures in mp4.

Shape letters: N frames of an episode, H W pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, line_of, require

from .episode import Array
from .layout import DATA_PATH, VIDEO_PATH
from .video_writer import VideoWriter

CHUNK = 1000  # files per folder
GOP = 2  # from keyframe to keyframe: single frames are read in any order


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What a full or read-only disk makes any of the writers raise becomes one line. Raises ConfigError."""
    try:
        yield
    except OSError as error:  # pyarrow's and PyAV's errors of files are of this kind too
        why = error.strerror or line_of(error, 120)
        raise ConfigError(f"{folder}: cannot be written ({why})") from None


class RowFiles:
    """The files of rows: an episode is a row group, and the next file begins where this one would grow too large."""

    def __init__(self, mb: float) -> None:
        self.limit = mb * (1 << 20)
        self.files = 0
        self._file: Any = None
        self._writer: Any = None

    def write(self, folder: Path, features: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Any]) -> list[int]:
        """Append the rows of an episode. Returns the numbers of its folder and file.

        columns: by feature, an array (N, ...), or for pictures a list of {"bytes", "path"}; none for those in videos.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = _table(features, columns)
        if self._writer is not None and self._file.tell() + table.nbytes > self.limit:
            self.close()
        if self._writer is None:
            chunk, number = divmod(self.files, CHUNK)
            path = folder / DATA_PATH.format(chunk_index=chunk, file_index=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pa.OSFile(str(path), "wb")
            # encoded pictures have no repetitions that a dictionary could hold
            plain = [
                n
                for n, kind in zip(table.schema.names, table.schema.types, strict=True)
                if not pa.types.is_struct(kind)
            ]
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="snappy", use_dictionary=plain)
            self.files += 1
        self._writer.write_table(table, row_group_size=len(table))
        return list(divmod(self.files - 1, CHUNK))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = None


class VideoFiles:
    """The files of one camera; episodes follow each other in a file."""

    def __init__(self, folder: Path, key: str, fps: float, codec: str, mb: float) -> None:
        self.folder, self.key = folder, key
        self.fps, self.codec, self.limit = fps, codec, mb * (1 << 20)
        self.files = self.start = 0
        self._writer: VideoWriter | None = None

    def begin(self, length: int) -> VideoWriter:
        if self._writer is not None and self._writer.size(length) > self.limit:
            self.close()
        if self._writer is None:
            chunk, number = divmod(self.files, CHUNK)
            path = self.folder / VIDEO_PATH.format(video_key=self.key, chunk_index=chunk, file_index=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = VideoWriter(path, self.fps, self.codec, gop=GOP)
            self.files += 1
        self.start = self._writer.frames
        return self._writer

    def end(self, length: int) -> dict[str, Any]:
        chunk, file = divmod(self.files - 1, CHUNK)
        at = {"from_timestamp": self.start / self.fps, "to_timestamp": (self.start + length) / self.fps}
        return {"chunk_index": chunk, "file_index": file, **at}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def encoded(frame: Array, kind: str) -> bytes:
    """A picture, uint8 (H, W, 3), as the bytes of a file. kind: png | jpeg."""
    require("PIL", "vla")
    from PIL import Image

    out = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if kind == "jpeg" else {"compress_level": 6}
    Image.fromarray(np.ascontiguousarray(frame)).save(out, kind, **options)
    return out.getvalue()


def write_tasks(file: Path, tasks: Mapping[str, int]) -> None:
    """Write the numbers of the instructions as `meta/tasks.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # pandas reads the column `task` as its index, because the schema says so
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{**index, "name": None, "field_name": None, "metadata": {"encoding": "UTF-8"}}],
        "columns": [{**column, "metadata": None}, {**index, "metadata": None}],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks)})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), file)


def video_info(height: int, width: int, fps: float, codec: str) -> dict[str, Any]:
    """Returns what LeRobot's info.json says of a video. height, width: pixels. fps: frames per second."""
    import av

    return {
        "video.height": height,
        "video.width": width,
        "video.codec": av.codec.Codec(codec, "w").canonical_name,
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": int(fps) if float(fps).is_integer() else fps,
        "video.channels": 3,
        "has_audio": False,
    }


def _table(features: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    fields, arrays, known = [], [], {}
    for key, feature in features.items():
        if feature["dtype"] == "video":
            continue
        known[key] = _hugging_face(feature)
        if feature["dtype"] == "image":
            array = pa.array(columns[key], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        else:
            array = pa.array(np.ascontiguousarray(columns[key]).reshape(-1))
            if feature["shape"] != [1]:
                array = pa.FixedSizeListArray.from_arrays(array, feature["shape"][0])
        fields.append(pa.field(key, array.type))
        arrays.append(array)
    metadata = {"huggingface": json.dumps({"info": {"features": known}})}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata))


def _hugging_face(feature: Mapping[str, Any]) -> dict[str, Any]:
    """A feature as the `datasets` library notes it in a parquet file."""
    if feature["dtype"] == "image":
        return {"_type": "Image"}
    value = {"dtype": feature["dtype"], "_type": "Value"}
    return value if feature["shape"] == [1] else {"feature": value, "length": feature["shape"][0], "_type": "List"}
