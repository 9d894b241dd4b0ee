"""Augmented rows: closed forms, the same row whenever it is asked for, and what stays as it is."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.data.augment import Augmented, moved, recoloured


def picture(seed: int = 0, size: int = 12, low: int = 60, high: int = 180) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (size, size, 3)).astype(np.uint8)


class Rows:
    def __init__(self, n: int = 3, cameras: int = 1) -> None:
        self.n, self.cameras = n, cameras

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        seen = [picture(10 * index) for _ in range(self.cameras)]
        return {
            "image": seen if self.cameras > 1 else seen[0],
            "state": np.arange(4, dtype=np.float32),
            "instruction": f"row {index}",
            "action": np.full((5, 4), index, np.float32),
            "where": f"frame {index}",
        }


EVERYTHING: dict[str, Any] = dict(shift=2, brightness=0.2, contrast=0.2, saturation=0.2, state_noise=0.1)


def checksum() -> int:
    rows = Augmented(Rows(cameras=2), copies=2, seed=5, **EVERYTHING)
    parts = [b"".join(one.tobytes() for one in [*rows[i]["image"], rows[i]["state"]]) for i in range(len(rows))]
    return zlib.crc32(b"".join(parts))


def test_moved_by_whole_pixels_with_repeated_edges() -> None:
    x = picture()
    for down, right in ((0, 0), (2, -1), (-3, 4), (0, 12)):
        padded = np.pad(x, ((20, 20), (20, 20), (0, 0)), mode="edge")
        assert np.array_equal(moved(x, down, right), padded[20 - down : 32 - down, 20 - right : 32 - right])


def test_factors() -> None:
    x = picture()
    assert np.array_equal(recoloured(x), x)
    assert np.array_equal(recoloured(x, brightness=0.5), np.round(x * 0.5).astype(np.uint8))
    assert np.array_equal(recoloured(x, brightness=2), np.minimum(x.astype(int) * 2, 255))
    grey = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    np.testing.assert_array_equal(recoloured(x, saturation=0), np.repeat(grey, 3, -1).round())
    np.testing.assert_array_equal(recoloured(x, contrast=0), np.full(x.shape, grey.mean().round()))
    np.testing.assert_array_equal(recoloured(x, contrast=0.5), (x / 2 + grey.mean() / 2).round())
    flat = np.full((4, 4, 3), 100, np.uint8)
    assert np.array_equal(recoloured(flat, contrast=1.7, saturation=0.2), flat)


def test_every_shift_is_drawn() -> None:
    rows = Augmented(Rows(1), copies=300, shift=1)
    x = Rows(1)[0]["image"]
    candidates = [moved(x, down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    seen = [
        next(i for i, c in enumerate(candidates) if np.array_equal(rows[i_row]["image"], c)) for i_row in range(300)
    ]
    counts = np.bincount(seen, minlength=9)
    assert (np.abs(counts - 300 / 9) < 5 * np.sqrt(300 / 9)).all()


def test_brightness_is_spread_over_its_range() -> None:
    rows = Augmented(Rows(1), copies=200, brightness=0.25)
    x = Rows(1)[0]["image"].astype(float)
    factors = np.array([(rows[i]["image"] * x).sum() / (x * x).sum() for i in range(200)])
    assert 0.745 < factors.min() < 0.77 and 1.23 < factors.max() < 1.255
    assert abs(factors.mean() - 1) < 5 * 0.5 / np.sqrt(12 * 200)


def test_cameras_share_colours_but_not_shifts() -> None:
    """Both cameras see the same picture here, so what differs is the shift alone."""
    coloured = Augmented(Rows(cameras=2), copies=4, brightness=0.3, contrast=0.3, saturation=0.3)
    shifted = Augmented(Rows(cameras=2), copies=4, shift=3)
    assert all(np.array_equal(*coloured[i]["image"]) for i in range(12))
    assert not all(np.array_equal(*shifted[i]["image"]) for i in range(12))


def test_the_same_row_whenever_it_is_asked_for() -> None:
    one, again, other = (Augmented(Rows(), copies=2, seed=seed, **EVERYTHING) for seed in (0, 0, 1))
    seen = {i: one[i] for i in range(6)}
    for i in (4, 1, 5, 0, 3, 2):
        for name in ("image", "state"):
            assert np.array_equal(seen[i][name], again[i][name]) and not np.array_equal(seen[i][name], other[i][name])
    assert np.array_equal(one[-1]["image"], one[5]["image"])


@pytest.mark.slow
def test_the_same_rows_in_another_process() -> None:
    code = "import test_augment; print(test_augment.checksum())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert there.stdout.strip() == str(checksum()), there.stderr


def test_one_setting_does_not_change_the_draws_of_another() -> None:
    plain, noisy = Augmented(Rows(), shift=2), Augmented(Rows(), shift=2, state_noise=1.0)
    assert all(np.array_equal(plain[i]["image"], noisy[i]["image"]) for i in range(3))


def test_copies_differ_and_belong_to_their_rows() -> None:
    rows = Augmented(Rows(), copies=3, **EVERYTHING)
    assert len(rows) == 9
    for i in range(9):
        assert rows[i]["instruction"] == f"row {i % 3}" and rows[i]["where"] == f"frame {i % 3}"
        assert np.array_equal(rows[i]["action"], Rows()[i % 3]["action"])
        assert rows[i]["state"].dtype == np.float32 and rows[i]["image"].dtype == np.uint8
    assert not np.array_equal(rows[0]["image"], rows[3]["image"])
    with pytest.raises(IndexError):
        rows[9]


def test_without_settings_nothing_changes_and_nothing_is_written_into() -> None:
    class Kept(Rows):
        row = Rows()[0]

        def __getitem__(self, index: int) -> dict[str, Any]:
            return self.row

    kept = Kept(1)
    same = Augmented(kept)[0]
    assert np.array_equal(same["image"], kept.row["image"]) and same["state"] is kept.row["state"]
    Augmented(kept, **EVERYTHING)[0]["image"][:] = 0
    assert np.array_equal(kept.row["image"], Rows()[0]["image"]) and kept.row["state"].tolist() == [0, 1, 2, 3]


def test_noise_an_entry() -> None:
    rows = Augmented(Rows(1), copies=400, state_noise=[0, 0, 0.5, 2])
    noise = np.stack([rows[i]["state"] for i in range(400)]) - np.arange(4)
    assert (noise[:, :2] == 0).all()
    spread = noise[:, 2:].std(0) / [0.5, 2]
    assert (np.abs(spread - 1) < 5 / np.sqrt(2 * 400)).all()
    with pytest.raises(DataError, match=r"frame 0: state_noise has 2 numbers, the state is \(4,\)"):
        Augmented(Rows(), state_noise=[1, 1])[0]


@pytest.mark.needs("PIL")
def test_encoded_pictures() -> None:
    from PIL import Image

    class Encoded(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            out = io.BytesIO()
            Image.fromarray(picture(10 * index)).save(out, "PNG")
            return {"image": out.getvalue(), "instruction": ""}

    for i in range(3):
        assert np.array_equal(Augmented(Encoded(), shift=2)[i]["image"], Augmented(Rows(), shift=2)[i]["image"])
        assert "state" not in Augmented(Encoded(), state_noise=1.0)[i]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"copies": 0}, "copies=0"),
        ({"seed": -1}, "seed=-1"),
        ({"shift": 1.5}, "shift: 1.5"),
        ({"brightness": 1.5}, "brightness=1.5: expected a number of at least 0 and below 1"),
        ({"contrast": float("nan")}, "contrast"),
        ({"state_noise": -1.0}, "state_noise"),
        ({"state_noise": [[1.0]]}, "state_noise"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Augmented(Rows(), **settings)
