"""Pictures of videos are those of their rows, or the data set is refused by file and frame."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robots.demos import DATA, EPISODES, LENGTHS, replaced, rewrite, set_at

from mmdiff.commands.cli import main
from mmdiff.errors import DataError
from mmdiff.tasks.vla.data.dataset import LeRobot, Steps

pytestmark = [pytest.mark.needs("pyarrow", "av", "PIL")]

FPS = 10
KEY = "observation.images.front"
FILM = f"videos/{KEY}/chunk-000/file-000.mp4"
Change = Callable[[Path], None]


@pytest.fixture
def films(filmed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filmed, tmp_path / "copy"))


@pytest.fixture
def old_films(films: Path, tmp_path: Path) -> Path:
    """The same data set as v2.1 lays it out: a file per episode."""
    import pyarrow.parquet as pq

    folder = tmp_path / "old"
    (folder / "meta").mkdir(parents=True)
    info = json.loads((films / "meta/info.json").read_text())
    info |= {"codebase_version": "v2.1", "chunks_size": 1000}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": n, "task": f"do {n}"}) + "\n" for n in (0, 1))
    )
    lines = [json.dumps({"episode_index": e, "tasks": [], "length": n}) + "\n" for e, n in enumerate(LENGTHS)]
    (folder / "meta/episodes.jsonl").write_text("".join(lines))
    table, data = pq.read_table(films / DATA), LeRobot(films)
    (folder / "data/chunk-000").mkdir(parents=True)
    for e in range(len(LENGTHS)):
        pq.write_table(table.slice(data.rows(e).start, LENGTHS[e]), folder / f"data/chunk-000/episode_{e:06d}.parquet")
        for camera in data.cameras:
            key = f"observation.images.{camera}"
            film(folder / f"videos/chunk-000/{key}/episode_{e:06d}.mp4", list(data.episode(e).images[camera]))
    return folder


def film(file: Path, frames: list[Any], at: Callable[[int], int] = lambda n: n) -> None:
    """Frame n is shown at `at(n)` / FPS."""
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.bit_rate, stream.codec_context.time_base = 4_000_000, Fraction(1, FPS)
        for n, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = at(n), Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def stamps(change: Callable[[float], float]) -> Change:
    def apply(folder: Path) -> None:
        for file in (folder / "data").glob("*/*.parquet"):
            rewrite(file, replaced("timestamp", lambda values: [change(value) for value in values]))

    return apply


def refilmed(at: Callable[[int], int], more: int = 0) -> Change:
    """The first film of a data set, with its frames at other times, and the first `more` times over again."""

    def apply(folder: Path) -> None:
        from mmdiff.tasks.vla.data.video import Video

        file = sorted(folder.glob(f"videos/**/{KEY}/**/*.mp4"))[0]
        frames = list(Video(file))
        file.unlink()
        film(file, [*frames[:1] * more, *frames], at)

    return apply


WRONG: dict[str, tuple[Change, str]] = {
    "all stamps zero": (stamps(lambda t: 0.0), r"\.parquet: episode 0 frame 1: timestamp is 0 s, expected frame_i"),
    "stamps at half rate": (stamps(lambda t: 2 * t), r"\.parquet: episode 0 frame 1: timestamp is 0.2 s, exp.* 0.1 s"),
    "stamps a frame late": (stamps(lambda t: t + 1 / FPS), r"\.parquet: episode 0 frame 0: timestamp is 0.1 s, .* 0 s"),
    "no stamps": (stamps(lambda t: float("nan")), r"\.parquet: episode 0 frame 0: timestamp is nan s"),
    "film at half rate": (refilmed(lambda n: 2 * n), r"\.mp4: frame 1 is shown at 0.200 s, expected 0.100 s at 10 fr"),
    "film a frame late": (refilmed(lambda n: n + 1), r"\.mp4: frame 0 is shown at 0.100 s, expected 0.000 s"),
    "film with a hole": (refilmed(lambda n: n + (n > 2)), r"\.mp4: frame 3 is shown at 0.400 s, expected 0.300 s"),
    "film with one frame more": (refilmed(lambda n: n, 1), r"\.mp4: holds \d+ frames, its episodes have \d+"),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["films", "old_films"])
@pytest.mark.parametrize("name", WRONG)
def test_pictures_of_other_moments_are_refused(
    name: str, layout: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = request.getfixturevalue(layout)
    change, message = WRONG[name]
    change(folder)
    with pytest.raises(DataError, match=message):
        Steps(str(folder), cameras=["front"])[3]  # the frame itself may be there
    assert main(["vla", "data", str(folder)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "Traceback" not in said[0]


STARTS = {
    "all at zero": ([0.0, 0.0, 0.0, 0.0], "episode 1 begins at 0.000 s, within episode 0, which ends at 0.500 s"),
    "at half rate": (
        [0.0, 1.0, 2.8, 3.0],
        "episode 2 begins at 2.800 s and has 1 frames, the video ends after 2.200 s",
    ),
    "a frame late": (
        [0.1, 0.6, 1.5, 1.6],
        "episode 3 begins at 1.600 s and has 7 frames, the video ends after 2.200 s",
    ),
    "between frames": ([0.0, 0.55, 1.4, 1.5], "episode 1 begins at 0.550 s, between two frames"),
}


@pytest.mark.parametrize("name", STARTS)
def test_episodes_that_begin_elsewhere_in_a_film(name: str, films: Path) -> None:
    starts, message = STARTS[name]
    rewrite(films / EPISODES, replaced(f"videos/{KEY}/from_timestamp", lambda _: starts))
    with pytest.raises(DataError, match=message):
        Steps(str(films), cameras=["front"])[0]
    with pytest.raises(DataError, match=message):
        LeRobot(films).check_videos()


def test_both_layouts_hold_the_same(films: Path, old_films: Path) -> None:
    new, old = Steps(str(films), chunk=3), Steps(str(old_films), chunk=3)
    old.data.check_videos()
    assert len(new) == len(old)
    for i in range(len(new)):
        shades = [[float(picture.mean()) for picture in row["image"]] for row in (new[i], old[i])]
        assert shades[0] == pytest.approx(shades[1], abs=2)


def test_stamps_do_not_matter_where_no_film_is(copy: Path) -> None:
    rewrite(copy / DATA, replaced("timestamp", set_at(2, 9.0)))
    assert len(Steps(str(copy))) == sum(LENGTHS)


def test_a_playlist_is_no_film(films: Path) -> None:
    (films / FILM).write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(DataError, match="not a video"):
        Steps(str(films))[0]
