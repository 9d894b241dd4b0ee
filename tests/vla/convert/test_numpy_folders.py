"""Folders of numpy files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.convert.numpy_folders import is_numpy_folder, numpy_episodes
from mmdiff.tasks.vla.convert.options import ReadOptions
from mmdiff.tasks.vla.convert.source import natural
from mmdiff.tasks.vla.data.episode import check_episode

OPTIONS = ReadOptions(fps=10)


def pictures(frames: int, shade: int = 0) -> np.ndarray:
    return (np.arange(frames * 4 * 6 * 3).reshape(frames, 4, 6, 3) + shade).astype(np.uint8)


def folder(at, number: int, frames: int = 3):
    at.mkdir(parents=True)
    np.save(at / "action.npy", np.full((frames, 2), float(number)))
    np.save(at / "state.npy", np.full((frames, 3), -float(number)))
    np.save(at / "front.npy", pictures(frames))
    (at / "wrist").mkdir()
    for i in range(frames):
        Image.fromarray(pictures(frames, 50)[i]).save(at / "wrist" / f"{i}.png")
    (at / "instruction.txt").write_text("push it\n")
    return at


def read(at, options: ReadOptions = OPTIONS) -> list:
    return [found.read() for found in numpy_episodes(at, options)]


def test_folders_and_archives(tmp_path):
    folder(tmp_path / "ep10", 10, frames=12)
    folder(tmp_path / "ep2", 2)
    more = {"actions": np.ones((4, 2), np.float32), "front": pictures(4), "wrist": pictures(4), "instruction": "pull"}
    np.savez(tmp_path / "ep3.npz", state=np.zeros((4, 3)), **more)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("not an episode")
    assert is_numpy_folder(tmp_path)
    found = [recording.episode for recording in read(tmp_path)]
    assert [(e.instruction, len(e)) for e in found] == [("push it", 3), ("pull", 4), ("push it", 12)]
    assert [e.action[0, 0] for e in found] == [2, 1, 10]
    for seen in found:
        check_episode(seen)
        assert sorted(seen.images) == ["front", "wrist"] and seen.fps == 10 and seen.state.dtype == np.float32
        assert (np.stack(list(seen.images["front"])) == pictures(len(seen))).all()
    wrist = found[2].images["wrist"]
    assert (np.stack(list(wrist)) == pictures(12, 50)).all()  # 10.png comes behind 9.png
    turned = read(tmp_path, ReadOptions(fps=10, rotate=180))[0].episode.images["front"]
    assert (turned[1] == pictures(3)[1, ::-1, ::-1]).all()


def test_options_and_the_instruction_of_all(tmp_path):
    at = folder(tmp_path / "0", 1)
    (at / "instruction.txt").unlink()
    with pytest.raises(ConfigError, match="instruction: .* give one"):
        read(tmp_path)
    (tmp_path / "instruction.txt").write_text("all the same")
    assert read(tmp_path)[0].episode.instruction == "all the same"
    options = ReadOptions(fps=10, instruction="mine", cameras={"top": "front"}, state=(), action=("state", "action"))
    recording = read(tmp_path, options)[0]
    assert (recording.episode.instruction, list(recording.episode.images)) == ("mine", ["top"])
    assert recording.episode.state is None and recording.episode.action[0].tolist() == [-1, -1, -1, 1, 1]
    with pytest.raises(ConfigError, match="fps: .* give it"):
        read(tmp_path, ReadOptions())


def test_objects_are_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code was run",))

    at = folder(tmp_path / "a", 0)
    np.save(at / "action.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", action=np.array([Trap()], dtype=object))
    for found in numpy_episodes(tmp_path, OPTIONS):
        with pytest.raises(DataError, match=f"{found.where}.*cannot be read .*(Python objects|allow_pickle)"):
            found.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: (at / "action.npy").unlink(), "episode 0: no action"),
        (lambda at: np.save(at / "front.npy", np.zeros((3, 4, 6, 3))), "camera 'front' is float64"),
        (lambda at: np.save(at / "wrist.npy", pictures(3)), "'wrist' exists twice"),
        (lambda at: (at / "wrist" / "1.png").unlink(), "camera 'wrist' has 2 pictures, 3 actions"),
        (lambda at: (at / "wrist" / "1.png").write_bytes(b"x"), "frame 1: camera 'wrist'.*not a picture"),
        (lambda at: (at / "state.npy").write_bytes(b"\x93NUMPY"), "state.npy: cannot be read"),
        (lambda at: np.save(at / "action.npy", np.array(["a"])), "action 'action' is <U1"),
        (lambda at: np.save(at / "action.npy", np.full((3, 2), np.inf)), r"frame 0: action\[0\] is inf"),
    ],
)
def test_what_is_broken_is_named(tmp_path, change, message):
    change(folder(tmp_path / "0", 1))
    (found,) = numpy_episodes(tmp_path, OPTIONS)
    with pytest.raises(DataError, match=message):
        check_episode(found.read().episode, found.where)


def test_a_cut_off_archive_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", action=np.zeros((3, 2)), instruction="go")
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    (found,) = numpy_episodes(tmp_path, OPTIONS)
    with pytest.raises(DataError, match="episode a.npz: cannot be read"):
        found.read()


def test_names_sort_as_people_count():
    names = ["demo_10", "demo_2", "a1b2", "a1b10", "demo", "7"]
    assert sorted(names, key=natural) == ["7", "a1b2", "a1b10", "demo", "demo_2", "demo_10"]
