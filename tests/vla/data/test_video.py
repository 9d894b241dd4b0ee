"""Moving pictures: frames come back, single ones equal those of a straight pass, damaged files are one line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.data.video import Video
from mmdiff.tasks.vla.data.video_writer import VideoWriter, write_gif, write_mp4

pytestmark = [pytest.mark.needs("av", "PIL")]


def moving(n: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frame k has its own brightness, and a bright column that moves."""
    frames = np.zeros((n, height, width, 3), np.uint8)
    for k in range(n):
        frames[k] = 40 + 3 * k % 180
        frames[k, :, k % width] = 250
    return list(frames)


def write(path: Path, n: int = 40, fps: float = 10, gop: int = 12, codec: str | None = None) -> list[np.ndarray]:
    writer = VideoWriter(path, fps, codec, gop=gop, quality=4)
    for frame in moving(n):
        writer.add(frame)
    writer.close()
    return moving(n)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_is_written_is_read(tmp_path: Path, codec: str) -> None:
    frames = write(tmp_path / "a.mp4", codec=codec)
    found = list(Video(tmp_path / "a.mp4"))
    assert len(found) == 40 and found[0].dtype == np.uint8 and found[0].shape == (32, 48, 3)
    # greys survive yuv420p up to the codec's loss; the neighbour's brightness is 3 away
    error = [
        np.abs(a[:, 44:].astype(int).mean() - b[:, 44:].astype(int).mean()) for a, b in zip(frames, found, strict=True)
    ]
    assert max(error) < 1.5


@pytest.mark.parametrize("gop", [1, 2, 12, 1000])
@pytest.mark.parametrize("fps", [10, 29.97, *(pytest.param(fps, marks=pytest.mark.slow) for fps in (7.3, 80))])
def test_a_frame_alone_is_that_of_a_straight_pass(tmp_path: Path, gop: int, fps: float) -> None:
    write(tmp_path / "a.mp4", fps=fps, gop=gop)
    straight = list(Video(tmp_path / "a.mp4"))
    video = Video(tmp_path / "a.mp4")
    assert len(straight) == 40 and abs(video.fps - fps) < 1e-3
    order = np.random.default_rng(0).permutation(40).tolist()
    for n in [0, 39, 38, 0, 0, 1, *order]:
        assert np.array_equal(video.at(n / fps), straight[n]), n
        assert np.array_equal(Video(tmp_path / "a.mp4").at(float(np.float32(n / fps))), straight[n]), n


def test_b_frames_of_others(tmp_path: Path) -> None:
    """Files of other programs are decoded in another order than they are shown."""
    import av

    with av.open(str(tmp_path / "b.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"bf": "3", "g": "20", "crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in moving(50):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    straight = list(Video(tmp_path / "b.mp4"))
    video = Video(tmp_path / "b.mp4")
    assert len(straight) == 50
    for n in np.random.default_rng(1).permutation(50).tolist():
        assert np.array_equal(video.at(n / 10), straight[n]), n


def test_a_video_goes_to_other_processes(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    video = Video(tmp_path / "a.mp4")
    fifth = video.at(0.5)
    assert np.array_equal(pickle.loads(pickle.dumps(video)).at(0.5), fifth)
    read, wrote = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(wrote, b"1" if np.array_equal(video.at(0.5), fifth) else b"0")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"
    assert not np.array_equal(video.at(0.6), fifth)  # this process's own place was not moved


def test_damaged(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    write(file, 200, gop=4)
    whole = file.read_bytes()
    with pytest.raises(DataError, match=r"a.mp4: no frame at 30.000 s, the video ends at 19.900 s"):
        Video(file).at(30)
    file.write_bytes(whole[: len(whole) // 2])  # the index stands at the front, the frames behind it are gone
    with pytest.raises(DataError, match=r"a\.mp4: (no frame|damaged)"):
        Video(file).at(19.5)
    with pytest.raises(DataError):
        assert len(list(Video(file))) == 200 or Video(file).at(19.5) is None
    file.write_bytes(b"not a video at all")
    with pytest.raises(DataError, match="a.mp4: not a video, or cut off"):
        list(Video(file))
    file.unlink()
    with pytest.raises(DataError, match="a.mp4: no such file"):
        Video(file).at(0)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="codec: 'h265x'"):
        write_mp4(tmp_path / "a.mp4", moving(2), 10, "h265x")
    with pytest.raises(DataError, match="no frames"):
        write_mp4(tmp_path / "a.mp4", [], 10)
    with pytest.raises(DataError, match=r"frame 1: shape \(16, 48, 3\), those before have \(32, 48, 3\)"):
        write_mp4(tmp_path / "a.mp4", [moving(1)[0], moving(1, 16)[0]], 10)
    with pytest.raises(DataError, match="31 x 48 pixels; yuv420p video needs even numbers"):
        VideoWriter(tmp_path / "b.mp4", 10).add(moving(1, 31)[0])
    with pytest.raises(ConfigError, match="fps=0"):
        write_gif(tmp_path / "a.gif", moving(2), 0)
    with pytest.raises(DataError, match="no frames"):
        write_gif(tmp_path / "a.gif", [], 5)
    assert [file.name for file in tmp_path.iterdir()] == []  # nothing half written
    write_mp4(tmp_path / "a.mp4", moving(2), 10)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ConfigError, match="there already"):
        write_mp4(tmp_path / "a.mp4", moving(4), 10)
    assert (tmp_path / "a.mp4").read_bytes() == before


def test_odd_sizes_are_padded_for_watching(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving(3, 31, 47), 10)
    assert next(iter(Video(tmp_path / "a.mp4"))).shape == (32, 48, 3)


@pytest.mark.parametrize(("fps", "kept", "hundredths"), [(10, 12, 120), (30, 12, 40), (80, 6, 15), (12.5, 12, 96)])
def test_gif(tmp_path: Path, fps: float, kept: int, hundredths: int) -> None:
    """A GIF takes as long as its frames do, also where a frame is no whole number of hundredths of a second."""
    from PIL import Image

    write_gif(tmp_path / "a.gif", moving(12), fps, scale=2)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == kept and gif.size == (96, 64) and gif.info["loop"] == 0
        total = 0
        for n in range(kept):
            gif.seek(n)
            total += gif.info["duration"]
            every = 12 // kept
            assert np.abs(np.array(gif.convert("RGB"))[0, ::2].astype(int) - moving(12)[n * every][0]).max() <= 2
    assert total == 10 * hundredths
