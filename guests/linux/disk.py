"""ext4 disk images without mounting anything: made, checked and read with e2fsprogs."""

from __future__ import annotations

import os
import pathlib
import subprocess

from linux.packages import need, output_of

# Debian puts them where a user's PATH does not look.
_PATH = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def make(path: pathlib.Path, megabytes: int, contents: pathlib.Path) -> None:
    """An ext4 file system of so many MiB at `path`, with what is in the folder `contents`."""
    _need()
    command = ["mke2fs", "-q", "-t", "ext4", "-F", "-d", str(contents), str(path), f"{megabytes}M"]
    output_of(*command, env=_PATH)


def check(path: pathlib.Path) -> str:
    """ "" if the file system at `path` is clean and whole, else what e2fsck found."""
    _need()
    done = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, env=_PATH)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def read(path: pathlib.Path, name: str) -> bytes:
    """The file `name` of the file system at `path`."""
    _need()
    command = ["debugfs", "-R", f"cat {name}", str(path)]
    return subprocess.run(command, capture_output=True, check=True, env=_PATH).stdout


def _need() -> None:
    need({"/sbin/mke2fs": "e2fsprogs"})
