"""Builds the minimal Linux kernels: `python guests/linux/kernel.py mmio|pc` prints the folder that
holds `vmlinux`, `bzImage`, `System.map`, `config` and, flat in `lib/modules`, the modules.

The source is Debian's `linux-source-6.1`, not patched. A kernel is kept in the cache under a name
made from the source's version and the configuration, so it is built once, in some minutes.

Debian offers HZ from 100 up; where ring 0 is emulated, the tick would be half of the work. The
kernel's build takes another top-level Kconfig (`KBUILD_KCONFIG`), and the first definition of a
symbol's default wins, so ours says 25 before the kernel's own files are read.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from linux import packages
from linux.packages import BuildError

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = "linux-source-6.1"
VARIANTS = ("mmio", "pc")
TOOLS = {
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "lz4": "lz4",
    "xz": "xz-utils",
    "perl": "perl",
    "/usr/include/libelf.h": "libelf-dev",
    "/usr/include/stdio.h": "libc6-dev",
}
# No user, host, date or path of the builder in the image.
REPRODUCIBLE = {
    "KBUILD_BUILD_USER": "pykvm",
    "KBUILD_BUILD_HOST": "pykvm",
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_VERSION": "1",
}


def fragment(variant: str) -> str:
    """The wanted settings of `variant`."""
    return "".join((HERE / f"{name}.config").read_text() for name in ("common", variant))


def settings(text: str) -> dict[str, str]:
    """The CONFIG_… lines of a configuration."""
    lines = (line.strip() for line in text.splitlines())
    return dict(line.split("=", 1) for line in lines if line.startswith("CONFIG_"))


def folder(variant: str) -> pathlib.Path:
    """Where the kernel of this source version and configuration is, or will be, in the cache."""
    made_from = "\0".join((packages.version(SOURCE), fragment(variant), kconfig("")))
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    return packages.cache() / "kernels" / f"{variant}-{digest}"


def kconfig(original: str) -> str:
    """The kernel's top-level Kconfig with HZ settled before anything else."""
    head, line, rest = original.partition("\n\n")
    return f"{head}{line}config HZ\n\tint\n\tdefault 25\n\n{rest}"


def build(variant: str) -> pathlib.Path:
    """The folder of the kernel `variant`, built now if the cache does not have it.

    BuildError: a tool or package is missing, a setting had no effect, the compiler failed."""
    if variant not in VARIANTS:
        raise BuildError(f"no kernel variant {variant!r}; there are {', '.join(VARIANTS)}")
    target = folder(variant)
    with packages.locked("kernels"):
        if not (target / "vmlinux").exists():
            packages.need(TOOLS)
            _build(variant, target)
    return target


def _source() -> pathlib.Path:
    """The unpacked kernel source."""
    tree = packages.unpacked(SOURCE)
    source = tree / SOURCE
    if not source.exists():
        part = tree / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        archive = next(tree.glob("usr/src/*.tar.xz"))
        packages.output_of("tar", "-xf", str(archive), "-C", str(part))
        (part / SOURCE).rename(source)
        archive.unlink()
    return source


def _build(variant: str, target: pathlib.Path) -> None:
    source = _source()
    work = target.with_name(target.name + ".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "Kconfig").write_text(kconfig((source / "Kconfig").read_text()))
    (work / "wanted").write_text(fragment(variant))
    log = work / "build.log"

    def make(*arguments: str) -> None:
        command = ["make", "-C", str(source), f"O={work}", "ARCH=x86_64", *arguments]
        command += [f"KBUILD_KCONFIG={work}/Kconfig", f"-j{os.cpu_count()}"]
        environment = {**os.environ, **REPRODUCIBLE, "KCONFIG_ALLCONFIG": str(work / "wanted")}
        with open(log, "ab") as file:
            if subprocess.run(command, stdout=file, stderr=file, env=environment).returncode:
                tail = log.read_text(errors="replace").splitlines()[-15:]
                raise BuildError(f"the kernel did not build ({log}):\n" + "\n".join(tail))

    make("allnoconfig")
    got = settings((work / ".config").read_text())
    lost = [k for k, v in settings(fragment(variant)).items() if got.get(k) != v]
    if lost:
        raise BuildError(f"settings without effect: {', '.join(lost)}")
    make("vmlinux", "bzImage", "modules")
    done = target.with_name(target.name + ".done")
    shutil.rmtree(done, ignore_errors=True)
    done.mkdir()
    packages.output_of("strip", "--strip-debug", "-o", str(done / "vmlinux"), str(work / "vmlinux"))
    (done / "lib/modules").mkdir(parents=True)
    for module in work.rglob("*.ko"):
        stripped = done / "lib/modules" / module.name
        packages.output_of("strip", "--strip-debug", "-o", str(stripped), str(module))
    shutil.copy(work / "arch/x86/boot/bzImage", done / "bzImage")
    shutil.copy(work / "System.map", done / "System.map")
    shutil.copy(work / ".config", done / "config")
    done.rename(target)
    shutil.rmtree(work)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build a minimal Linux kernel into the cache.")
    parser.add_argument("variant", nargs="+", choices=VARIANTS)
    try:
        for variant in parser.parse_args().variant:
            print(build(variant), flush=True)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
