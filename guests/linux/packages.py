"""Debian packages for the Linux guests: downloaded into a cache and unpacked there, not installed.

The cache is `$XDG_CACHE_HOME/pykvm` (`~/.cache/pykvm`). apt downloads and checks the packages, with
lists of its own, so it does not matter which release this system is, and nothing here needs root.
`PYKVM_DEBIAN_MIRROR` names another mirror than http://deb.debian.org/debian.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache as once

# The release whose kernels are built and booted.
SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class BuildError(Exception):
    """One sentence for the person at the terminal."""


def cache() -> pathlib.Path:
    """Where downloads, kernels and initramfs images are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(base, "pykvm")
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time makes the thing called `name` in the cache."""
    with open(cache() / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def output_of(*command: str, **options: object) -> str:
    """What `command` prints; BuildError with its last line of complaint if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BuildError(f"{' '.join(command[:3])}: {lines[-1]}")
    return str(done.stdout)


def need(tools: dict[str, str]) -> None:
    """BuildError naming the packages of the `tools` (command or file → package) not here."""
    missing = {
        package
        for tool, package in tools.items()
        if not (os.path.exists(tool) if tool.startswith("/") else shutil.which(tool))
    }
    if missing:
        raise BuildError(f"something is missing; run:  apt-get install {' '.join(sorted(missing))}")


@once
def kernel_package(flavour: str) -> str:
    """The package that Debian's `linux-image-FLAVOUR` depends on: linux-image-6.1.0-37-amd64."""
    meta = f"linux-image-{flavour}"
    for line in output_of("apt-cache", *apt(SUITE, "amd64"), "depends", meta).splitlines():
        name = line.split()[-1]
        if line.strip().startswith("Depends:") and name.startswith("linux-image-"):
            return name
    raise BuildError(f"Debian {SUITE} has no {meta}")


def apt(suite: str, architecture: str) -> list[str]:
    """Options that make apt use its own lists of Debian's `suite`: the configuration, package
    lists and architectures of this system are neither used nor changed. The lists are downloaded
    once, and again when a package in them is no longer on the server."""
    need(
        {
            "apt-get": "apt",
            "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
        }
    )
    root = cache() / "apt" / f"{suite}-{architecture}"
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": root / "parts",
        "Dir::State::lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root / "cache",
    }
    flags = [flag for key, value in options.items() for flag in ("-o", f"{key}={value}")]
    with locked("apt"):
        if not (root / "updated").exists():
            for folder in ("lists/partial", "cache/archives/partial", "parts"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            mirror = os.environ.get("PYKVM_DEBIAN_MIRROR") or "http://deb.debian.org/debian"
            (root / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
            (root / "status").touch()
            output_of("apt-get", *flags, "-q", "update")
            (root / "updated").touch()
    return flags


def _outdated(suite: str, architecture: str) -> None:
    """The lists of `suite` are downloaded again before they are next used."""
    (cache() / "apt" / f"{suite}-{architecture}" / "updated").unlink(missing_ok=True)


@once
def version(package: str, suite: str = SUITE, architecture: str = "amd64") -> str:
    """The version of `package` in `suite`."""
    text = output_of(
        *("apt-cache", *apt(suite, architecture), "show", "--no-all-versions", package)
    )
    for line in text.splitlines():
        if line.startswith("Version: "):
            return line.split()[1]
    raise BuildError(f"Debian {suite} has no package {package}")


def unpacked(package: str, suite: str = SUITE, architecture: str = "amd64") -> pathlib.Path:
    """The tree of one Debian package, from the cache or downloaded now. Its scripts do not run."""
    return _tree(package, suite, architecture, ["download", package])


def unpacked_with_dependencies(package: str, suite: str) -> pathlib.Path:
    """The same with everything that `package` depends on, the C library included: its programs
    run by their own dynamic loader beside whatever this system has installed."""
    return _tree(package, suite, "amd64", ["install", "--yes", "--download-only", package])


def _tree(package: str, suite: str, architecture: str, command: list[str]) -> pathlib.Path:
    name = f"{package}_{version(package, suite, architecture)}_{architecture}"
    if "install" in command:
        name += "_with-dependencies"
    tree = cache() / "packages" / name.replace(":", "-")
    with locked("packages"):
        if tree.exists():
            return tree
        work = tree.with_name(tree.name + ".part")
        shutil.rmtree(work, ignore_errors=True)
        (work / "archives/partial").mkdir(parents=True)
        for attempt in (1, 2):
            options = [*apt(suite, architecture), "-o", f"Dir::Cache::archives={work}/archives"]
            try:
                output_of("apt-get", *options, "-q", *command, cwd=work / "archives")
                break
            except BuildError:
                if attempt == 2:
                    raise
                _outdated(suite, architecture)
        for archive in (work / "archives").glob("*.deb"):
            output_of("dpkg-deb", "-x", str(archive), str(work / "tree"))
        (work / "tree").rename(tree)
        shutil.rmtree(work)
    return tree
