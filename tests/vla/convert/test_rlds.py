"""TFDS folders: one that tensorflow-datasets wrote (tests/data/rlds), and records made by hand from the format."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from paths import DATA
from PIL import Image

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.convert.options import ReadOptions
from mmdiff.tasks.vla.convert.rlds import rlds_episodes
from mmdiff.tasks.vla.convert.tfrecord import example, masked_crc32c, records
from mmdiff.tasks.vla.data.episode import check_episode

REACH = DATA / "rlds"
OPTIONS = ReadOptions(fps=5)


def crc_by_bits(data: bytes) -> int:
    """RFC 3720, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc_by_bits(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    return head + masked(head) + data + masked(data)


def varint(n: int) -> bytes:
    n &= (1 << 64) - 1
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def proto(features: dict[str, list]) -> bytes:
    """A tf.train.Example, written by the encoding guide of protocol buffers."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], bytes):
            feature = field(1, b"".join(field(1, value) for value in values))
        elif isinstance(values[0], float):
            feature = field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = field(3, field(1, b"".join(varint(value) for value in values)))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def tensor(*shape: int, dtype: str = "float32") -> dict:
    return {"pythonClassName": "t.Tensor", "tensor": {"shape": {"dimensions": list(map(str, shape))}, "dtype": dtype}}


def features(tree: dict) -> dict:
    return {"featuresDict": {"features": {k: v if "pythonClassName" in v else features(v) for k, v in tree.items()}}}


PICTURE = {"pythonClassName": "i.Image", "image": {"shape": {"dimensions": ["2", "2", "3"]}, "dtype": "uint8"}}
TEXT = {"pythonClassName": "t.Text", "text": {}}
STEP = {"observation": {"image": PICTURE, "state": tensor(2)}, "action": tensor(3), "language_instruction": TEXT}


def episode(number: int, frames: int = 2, **change: list) -> bytes:
    said = [b"lift"] * frames
    values = {
        "steps/action": [float(number)] * 3 * frames,
        "steps/observation/state": [0.5] * 2 * frames,
        "steps/observation/image": [png(np.full((2, 2, 3), number, np.uint8))] * frames,
        "steps/language_instruction": said,
    }
    return proto(values | {f"steps/{key}": value for key, value in change.items()})


def folder(at: Path, shards: list[list[bytes]], step: dict = STEP, lengths: list[int] | None = None) -> Path:
    steps = {"pythonClassName": "d.Dataset", "sequence": {"feature": features(step), "length": "-1"}}
    (at / "features.json").write_text(json.dumps(features({"steps": steps})))
    info = {"splits": [{"name": "train", "shardLengths": lengths or [len(shard) for shard in shards]}]}
    (at / "dataset_info.json").write_text(json.dumps(info))
    for n, shard in enumerate(shards):
        name = f"toy-train.tfrecord-{n:05d}-of-{len(shards):05d}"
        (at / name).write_bytes(b"".join(record(data) for data in shard))
    return at


def read(at: Path, options: ReadOptions = OPTIONS) -> list:
    return [found.read() for found in rlds_episodes(at, options)]


def test_checksums_are_those_of_the_standard_and_of_tensorboard():
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as of_tensorboard

    # RFC 3720, B.4, and the check value of CRC-32C
    vectors = {bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E, b"123456789": 0xE3069283}
    assert {data: unmasked(masked_crc32c(data)) for data in vectors} == vectors
    rng = random.Random(0)
    for size in (0, 1, 511, 512, 513, 1023, 1024, 4097, 50_000):
        data = rng.randbytes(size)
        assert unmasked(masked_crc32c(data)) == crc_by_bits(data)
        assert masked_crc32c(data) == of_tensorboard(data)


def unmasked(crc: int) -> int:
    turned = (crc - 0xA282EAD8) % (1 << 32)
    return (turned >> 17 | turned << 15) % (1 << 32)


def test_an_example_is_read_packed_or_not():
    assert {k: list(v) for k, v in example(proto({"a": [1, -2, 300], "b": [0.5], "c": [b"x", b""]})).items()} == {
        "a": [1, -2, 300],
        "b": [0.5],
        "c": [b"x", b""],
    }
    loose = b"".join(varint(1 << 3) + varint(n) for n in (7, 8))  # int64 values without packing
    entry = field(1, field(1, b"n") + field(2, field(3, loose)))
    assert list(example(field(1, entry))["n"]) == [7, 8]
    with pytest.raises(ValueError, match="not a tf.train.Example"):
        example(b"\xff\xff")


def test_a_folder_of_tfds_gives_what_was_put_in():
    """Written by tensorflow-datasets 4.9.10 from the formulas below, which its `as_dataset` gives back too."""
    found = read(REACH, ReadOptions(fps=5, state=("state", "packed", "plain"), action=("action", "gripper")))
    assert len(found) == 2
    numbers = []
    for recording in found:
        seen = recording.episode
        number = int(seen.instruction.removeprefix("reach é "))
        numbers.append(number)
        frames = 3 + number
        check_episode(seen)
        assert len(seen) == frames and seen.fps == 5
        third = np.float32(1 / 3)
        for i in range(frames):
            assert seen.action[i].tolist() == [number + i / 4, -i, i % 2]
            assert seen.state[i].tolist() == [number, i, 0.5, i, third, i, -number]
            picture = (np.arange(72).reshape(4, 6, 3) + 50 * number + 10 * i) % 256
            assert (seen.images["image"][i] == picture).all()
            assert np.abs(seen.images["wrist"][i].astype(int) - (20 * i + number)).max() <= 1  # a JPEG
        assert list(seen.images) == ["image", "wrist"]  # the depth has one colour
        assert recording.action_names == ("action.0", "action.1", "gripper")
        assert recording.state_names[2:5] == ("state.2", "packed.0", "packed.1")
    assert sorted(numbers) == [0, 1]


def test_shards_are_read_in_order(tmp_path):
    at = folder(tmp_path, [[episode(n)] for n in range(12)])
    assert [int(r.episode.action[0, 0]) for r in read(at)] == list(range(12))
    assert read(at)[3].episode.images["image"][1].tolist() == np.full((2, 2, 3), 3).tolist()


def test_a_version_folder_is_found(tmp_path):
    shutil.copytree(REACH, tmp_path / "1.0.0")
    assert len(read(tmp_path)) == 2
    shutil.copytree(REACH, tmp_path / "1.1.0")
    with pytest.raises(DataError, match="1.0.0, 1.1.0; give one"):
        read(tmp_path)


def test_any_flipped_bit_is_noticed(tmp_path):
    at = tmp_path / "x.tfrecord"
    whole = record(b"one") + record(b"two" * 300)
    assert (at.write_bytes(whole), list(records(at)))[1] == [b"one", b"two" * 300]
    for place in (0, 9, 13, 17, 19, 40, len(whole) - 1):
        data = bytearray(whole)
        data[place] ^= 4
        at.write_bytes(data)
        assert any(isinstance(found, DataError) for found in records(at)), place
    at.write_bytes(whole[:-1])
    assert "record 1: the file is cut off" in str(list(records(at))[-1])


def test_a_damaged_record_is_named_and_those_behind_it_are_read(tmp_path):
    at = folder(tmp_path, [[episode(n) for n in range(3)]])
    shard = at / "toy-train.tfrecord-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[len(record(episode(0))) + 60] ^= 1
    shard.write_bytes(data)
    first, second, third = rlds_episodes(at, OPTIONS)
    assert (first.read().episode.action[0, 0], third.read().episode.action[0, 0]) == (0, 2)
    with pytest.raises(DataError, match="00000-of-00001 record 1: damaged data"):
        second.read()


def test_missing_shards_and_records_are_said(tmp_path):
    at = folder(tmp_path, [[episode(0)], [episode(1)]], lengths=[1, 2])
    *whole, short = rlds_episodes(at, OPTIONS)
    assert len([found.read() for found in whole]) == 2
    with pytest.raises(DataError, match="00001-of-00002: 1 records, dataset_info.json says 2"):
        short.read()
    (at / "toy-train.tfrecord-00000-of-00002").unlink()
    with pytest.raises(DataError, match="lacks shard 0 of 2"):
        read(at)


def test_a_broken_picture_and_a_short_column_are_named(tmp_path):
    pictures = [png(np.zeros((2, 2, 3), np.uint8)), b"no picture"]
    at = folder(tmp_path, [[episode(0, **{"observation/image": pictures}), episode(1, action=[1.0] * 5)]])
    first, second = rlds_episodes(at, OPTIONS)
    with pytest.raises(DataError, match=r"episode 0 frame 1: camera 'image'.*not a picture"):
        check_episode(first.read().episode, first.where)
    with pytest.raises(DataError, match=r"episode 1: action: 5 values do not fill steps of shape \(3,\)"):
        second.read()


def test_an_instruction_that_changes_or_is_empty(tmp_path):
    said = {"language_instruction": [b"lift", b"drop"]}
    at = folder(tmp_path, [[episode(0, **said), episode(1, language_instruction=[b"", b""])]])
    first, second = rlds_episodes(at, OPTIONS)
    with pytest.raises(DataError, match="episode 0: the instruction changes from 'lift' to 'drop'"):
        first.read()
    with pytest.raises(DataError, match="episode 1: empty instruction"):
        second.read()
    assert [r.episode.instruction for r in read(at, ReadOptions(fps=5, instruction="go"))] == ["go", "go"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ReadOptions(), "fps: .* give it"),
        (ReadOptions(fps=5, split="test"), r"split: .*'test'"),
        (ReadOptions(fps=5, state=("stat",)), "state: .* no 'stat'"),
        (ReadOptions(fps=5, cameras={"front": "images"}), "camera front: .* no 'images'"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        read(folder(tmp_path, [[episode(0)]]), options)


def test_an_action_in_parts_must_be_named_in_order(tmp_path):
    parts = {"move": tensor(2), "grip": tensor(1)}
    data = proto({"steps/action/move": [1.0, 2.0], "steps/action/grip": [3.0]})
    at = folder(tmp_path, [[data]], {"action": parts})
    with pytest.raises(ConfigError, match="out of action/move, action/grip"):
        read(at)
    found = read(at, ReadOptions(fps=5, instruction="go", action=("action/grip", "action/move")))
    assert found[0].episode.action.tolist() == [[3, 1, 2]]
    assert found[0].action_names == ("grip.0", "move.0", "move.1")


def test_an_unknown_state_must_be_chosen(tmp_path):
    step = {"observation": {"pose": tensor(2), "instruction_embedding": tensor(4)}, "action": tensor(3)}
    data = proto({"steps/action": [1.0] * 3, "steps/observation/pose": [1.0, 2.0]})
    at = folder(tmp_path, [[data]], step)
    with pytest.raises(ConfigError, match="out of observation/pose, or none"):
        read(at, ReadOptions(fps=5, instruction="go"))
    assert read(at, ReadOptions(fps=5, instruction="go", state=()))[0].episode.state is None
    assert read(at, ReadOptions(fps=5, instruction="go", state=("pose",)))[0].episode.state.tolist() == [[1, 2]]
