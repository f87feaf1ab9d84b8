"""qcow2 overlays: files that hold what differs from a disk below."""

from __future__ import annotations

import contextlib
import os
import tempfile

from pykvm.devices.block.backend import BlockError, host_error
from pykvm.devices.block.images_chain import close_layers, open_chain, program, run_tool


def prepare_overlay(base: str, driver: str, overlay: str) -> str:
    """The overlay, made if it is not there; `driver` is QEMU's for the format of `base`.

    One that is there has to stand on `base`. Raises `BlockError`.
    """
    base = os.path.realpath(base)
    if os.path.exists(overlay):
        _check(base, overlay)
    else:
        _make(base, driver, overlay)
    return overlay


def _check(base: str, overlay: str) -> None:
    layers = open_chain(overlay, "", writable=False)
    try:
        if layers[0].driver != "qcow2":
            raise BlockError(f"{overlay} is there and no qcow2 image; give another overlay")
        if len(layers) < 2 or not os.path.samefile(layers[1].path, base):
            below = f"on {layers[1].path}" if len(layers) > 1 else "by itself"
            raise BlockError(f"{overlay} is there and stands {below}, not on {base}")
    finally:
        close_layers(layers)


def _make(base: str, driver: str, overlay: str) -> None:
    """With another name at first: what has the overlay's name is whole."""
    target = os.path.abspath(overlay)
    try:
        fd, path = tempfile.mkstemp(".new", os.path.basename(target) + ".", os.path.dirname(target))
    except OSError as error:
        raise host_error(overlay, "making the overlay", error) from error
    os.close(fd)
    try:
        words = [program("qemu-img"), "create", "-q", "-f", "qcow2", "-F", driver, "-b", base, path]
        run_tool(words, f"the overlay {overlay} cannot be made")
        os.link(path, target)
    except FileExistsError:
        raise BlockError(f"{overlay} was made by somebody else in this moment") from None
    except OSError as error:
        raise host_error(overlay, "making the overlay", error) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
