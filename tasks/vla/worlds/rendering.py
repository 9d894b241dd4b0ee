"""MuJoCo pictures on a machine without a GPU, and often without a display.

A scene is drawn without its 4096 x 4096 shadow map, reflections and multi-sampling, which make a software renderer 15
times slower, whatever the size of the picture.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from mmdiff.errors import ConfigError

T = TypeVar("T")

PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}  # Debian's names
_open: weakref.WeakSet[Any] = weakref.WeakSet()  # renderers that are not closed


def import_mujoco() -> Any:
    """MuJoCo, drawing through EGL where nothing else is chosen and there is no display. Raises ConfigError."""
    chosen = any(os.environ.get(name) for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"))
    by_egl = sys.platform == "linux" and not chosen
    late = "mujoco" in sys.modules  # it has then made its choice, of a window
    if by_egl:
        os.environ["MUJOCO_GL"] = "egl"

    def load() -> Any:
        import mujoco

        if by_egl and late:
            mujoco.gl_context.GLContext = import_module("mujoco.egl").GLContext
        return mujoco

    return drawing(load)


def new_renderer(mujoco: Any, model: Any, size: int) -> Any:
    """A `mujoco.Renderer` of pictures (size, size, 3), with a buffer no larger than that. It is closed in time when the
    interpreter ends; what it draws, it draws in the thread that it was made in. Raises ConfigError."""
    model.vis.global_.offwidth = model.vis.global_.offheight = size
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
    _load_triton()
    renderer = drawing(lambda: mujoco.Renderer(model, size, size))
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    if not _open:  # EGL has registered its own end by now, so that this runs before it
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(renderer)
    return renderer


def _load_triton() -> None:
    """Triton, which torch imports when it makes an optimizer, crashes the process where Mesa's software renderer has
    loaded its own LLVM before; the other order is sound."""
    if sys.platform == "linux" and find_spec("triton") is not None:
        with suppress(ImportError):
            import_module("triton._C.libtriton")


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()


def drawing(make: Callable[[], T]) -> T:
    """make(), and whatever a missing graphics library raises as one sentence that names its package."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None  # a half-made context fails once more as it is deleted
    why = ""
    try:
        with quiet():
            return make()
    except Exception as error:  # mujoco, PyOpenGL and GLFW raise whatever comes: AttributeError, OSError, RuntimeError
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        sys.unraisablehook = hook
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if chosen in PACKAGES:
        cure = f"on Debian, apt-get install {PACKAGES[chosen]}"
    else:
        cure = (
            f"without a display start with MUJOCO_GL=egl ({PACKAGES['egl']}) or MUJOCO_GL=osmesa ({PACKAGES['osmesa']})"
        )
    raise ConfigError(f"MuJoCo cannot draw with MUJOCO_GL={chosen or 'unset'} ({why}): {cure}")


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings that Gymnasium, Meta-World and GLFW give about themselves."""
    with warnings.catch_warnings():
        for module in ("gymnasium", "metaworld", "glfw", "mujoco"):
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
        yield
