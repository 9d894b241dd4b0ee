"""Rare values that quantile statistics clip are named, with the settings that keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmdiff.tasks.vla.codecs.normalise import Normaliser, Statistics
from mmdiff.tasks.vla.data.episode import Episode
from mmdiff.tasks.vla.data.writer import LeRobotWriter


@pytest.mark.parametrize(("share", "noise"), [(0.009, 0.0), (0.009, 0.001), (0.0, 0.0), (0.03, 0.0)])
def test_a_gripper_that_is_rarely_closed(share: float, noise: float) -> None:
    """Closed in less than 1 % of the frames, nothing is left of it: that is said, with the settings that keep it."""
    rng = np.random.default_rng(0)
    x_ND = np.stack([rng.standard_normal(10_000), np.ones(10_000)], 1)
    x_ND[: int(share * len(x_ND)), 1] = -1
    x_ND[:, 1] += noise * rng.standard_normal(len(x_ND))
    found = Statistics.of(x_ND, ("x", "grip"))
    lines = Normaliser(found).lost()
    if not 0 < share < 0.01:
        assert lines == []
        return
    assert len(lines) == 1 and lines[0].startswith("grip: values from -1") and "task.binary=[grip]" in lines[0]
    closed, opened = Normaliser(found).inverse(Normaliser(found).forward([[0, -1], [0, 1]]))[:, 1]
    assert abs(closed - opened) < 0.1  # what the warning is about
    for kept in (
        Normaliser(found, binary=("grip",)),
        Normaliser(found, "bounds"),
        Normaliser(found, untouched=("grip",)),
    ):
        assert kept.lost() == []
        closed, opened = kept.inverse(kept.forward([[0, -1], [0, 1]]))[:, 1]
        assert closed == pytest.approx(-1, abs=0.01) and opened == pytest.approx(1, abs=0.01)


def test_the_warning_is_given_where_data_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    from mmdiff.commands.cli import main
    from mmdiff.tasks.vla.task import VLA

    action_ND = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    action_ND[:, 1] = np.where(np.arange(1000) < 5, -1, 1)
    with LeRobotWriter(tmp_path / "arm", fps=10, action_names=("x", "grip")) as writer:
        writer.add(Episode("go", action_ND, action_ND[:, :1], {}, 10))
    data = str(tmp_path / "arm")
    task = VLA(data, chunk=2, cameras=0, prompt="<state>{instruction}")
    assert "warning: actions of arm: grip: values from -1 to 1 are clipped to 1 to 1" in capsys.readouterr().err
    assert main(["vla", "data", data]) == 0
    assert "warning: actions: grip" in capsys.readouterr().err
    VLA(data, chunk=2, cameras=0, prompt="<state>{instruction}", binary=["grip"])
    VLA(task.constants()["statistics"], chunk=2, cameras=0, prompt="<state>{instruction}")  # of a saved model
    assert not capsys.readouterr().err
