"""What an image stands on: `qemu-img info`, and the chain of backing files.

An image may be somebody else's. The tools run with limits, each backing file is looked at before
the next is opened, and loops, endless chains and absurd sizes are refused. A backing file may be
anywhere that the user may read, as with QEMU; it has to be a file.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import stat
import subprocess

from pykvm.devices.block.backend import BlockError, host_error
from pykvm.devices.block.images_detect import DRIVERS, cannot_open, detect_fd, driver_of
from pykvm.typed import Any, NamedTuple

PACKAGE = "qemu-utils"
_SECONDS = 30  # of wall and of CPU time
_MEMORY = 4 << 30  # bytes of address space
_MAX_LAYERS = 64
MAX_SIZE = 1 << 60  # bytes
_DIRS = ("/usr/bin", "/usr/local/bin", "/bin")
_NO_LOCKS = (95, 22, 38, 37, 9)  # file systems without locks


def program(name: str, package: str = PACKAGE) -> str:
    """The path of one of QEMU's tools. Raises `BlockError` with the package that has it."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_DIRS))
    if found is None:
        raise BlockError(
            f"{name} is not installed, and this disk needs it; on Debian: apt-get install {package}"
        )
    return found


class Layer(NamedTuple):
    """One image of a chain: its absolute path, QEMU's driver, and an fd that holds its lock."""

    path: str
    driver: str
    fd: int
    size: int

    def protocol(self) -> dict[str, Any]:
        """The node that reads the file, for QEMU."""
        device = stat.S_ISBLK(os.fstat(self.fd).st_mode)
        return {"driver": "host_device" if device else "file", "filename": self.path}


def run_tool(words: list[str], subject: str) -> bytes:
    """The output of one of QEMU's tools. Raises `BlockError` with what it said."""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, env={**os.environ, "LC_ALL": "C"},
    ) as child:  # fmt: skip
        try:
            resource.prlimit(child.pid, resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
            resource.prlimit(child.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            output, errors = child.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            raise BlockError(
                f"{subject}: {os.path.basename(words[0])} did not finish within {_SECONDS} seconds"
            ) from None
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise BlockError(f"{subject}: {reason(errors.decode(errors='replace'), child.returncode)}")
    return output


def reason(errors: str, code: int = 1) -> str:
    """Why a tool failed, in its own words but without the file's name."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if not lines:
        return f"the tool was ended by signal {-code}" if code < 0 else f"exit status {code}"
    text = lines[0].partition(": ")[2] if lines[0].startswith("qemu-") else lines[0]
    if text.startswith("Could not open '") and "': " in text:
        text = text.rpartition("': ")[2]
    text = "".join(c if c.isprintable() else " " for c in text)[:300]
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def image_info(layer: Layer) -> dict[str, Any]:
    """`qemu-img info` of one image, without its backing files. Raises `BlockError`."""
    node = json.dumps({"driver": layer.driver, "file": layer.protocol()})
    words = [program("qemu-img"), "info", "--output=json", "-U", "json:" + node]
    name = next((name for name, driver in DRIVERS.items() if driver == layer.driver), "")
    output = run_tool(words, f"the disk {layer.path} cannot be read as {name}")
    info: dict[str, Any] = json.loads(output)
    return info


def lock(path: str, fd: int, exclusive: bool) -> None:
    """flock(2), so that two machines do not write to one image. Raises `BlockError`."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockError(
            f"the disk {path} is in use by another machine or process; "
            "open it with snapshot, or stop the other one", 16,
        ) from None  # fmt: skip
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise host_error(path, "locking it", error) from error


def open_layer(path: str, driver: str | None, exclusive: bool) -> Layer:
    """Opens and locks one image; `driver` None: found by its bytes. Raises `BlockError`."""
    path = os.path.abspath(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise cannot_open(path, error) from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise BlockError(f"{path} is not a disk: give a regular file or a block device", 15)
        lock(path, fd, exclusive)
        if driver is None:
            driver = driver_of(detect_fd(fd))
        return Layer(path, driver, fd, 0)
    except OSError as error:
        os.close(fd)
        raise host_error(path, "looking at its format", error) from error
    except BaseException:
        os.close(fd)
        raise


def open_chain(path: str, driver: str, writable: bool) -> list[Layer]:
    """An image and all that it stands on, each opened, locked and looked at.

    The caller closes the layers' fds. Raises `BlockError`.
    """
    layers: list[Layer] = []
    seen: set[tuple[int, int]] = set()
    name, wanted, exclusive = path, driver or None, writable
    try:
        while True:
            if os.path.exists(name):
                status = os.stat(name)
                if (status.st_dev, status.st_ino) in seen:
                    raise BlockError(f"the backing files of {path} go round in a loop at {name}")
                seen.add((status.st_dev, status.st_ino))
            layer = open_layer(name, wanted, exclusive)
            layers.append(layer)
            if len(layers) > _MAX_LAYERS:
                raise BlockError(f"{path} has more than {_MAX_LAYERS} backing files")
            if layer.driver == "raw":
                return layers
            info = image_info(layer)
            size = int(info.get("virtual-size", 0))
            if size > MAX_SIZE:
                raise BlockError(f"{layer.path} says that it has {size} bytes, which is absurd")
            layers[-1] = layer._replace(size=size)
            backing = info.get("backing-filename")
            if not backing:
                return layers
            name = _resolve(layer.path, str(backing))
            wanted = _backing_driver(layer.path, info.get("backing-filename-format"))
            exclusive = False
    except BlockError as error:
        close_layers(layers)
        if name is path or path in str(error):
            raise
        raise BlockError(f"{path} stands on a backing file: {error}", error.errno) from None
    except BaseException:
        close_layers(layers)
        raise


def _resolve(overlay: str, backing: str) -> str:
    """The path of a backing file; relative ones are beside their overlay."""
    prefix, colon, rest = backing.partition(":")
    if colon and "/" not in prefix:
        if prefix != "file":
            raise BlockError(
                f"{overlay} has the backing file {backing[:80]!r}, which is no plain file; "
                "change it with: qemu-img rebase -u"
            )
        backing = rest
    return os.path.join(os.path.dirname(overlay), backing)


def _backing_driver(overlay: str, format: Any) -> str | None:
    if format is None:
        return None
    if format in ("file", "host_device"):
        return "raw"
    if format not in DRIVERS.values():
        raise BlockError(f"{overlay} has a backing file of the unknown format {str(format)[:40]!r}")
    return str(format)


def close_layers(layers: list[Layer]) -> None:
    """Closes the images, which unlocks them."""
    for layer in layers:
        os.close(layer.fd)
    layers.clear()
