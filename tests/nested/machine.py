"""The nested tier's machine: a VM of QEMU's software CPU with AMD SVM and nested paging, under a
Debian kernel with kvm_amd. Its /dev/kvm has a hardware KVM's semantics.

Its root is this system's, read-only over 9p with a RAM disk over it, so the same Python and
checkout are there under the same names. QEMU comes from Debian 13 with its own libraries, in a
cache: the software SVM of Debian 12's loses timer interrupts and hangs. `PYKVM_NESTED_QEMU` names
another one.
"""

from __future__ import annotations

import lzma
import os
import pathlib
import shlex
import socket
import subprocess
import tempfile
import time

from linux import initramfs, packages
from linux.cpio import Archive
from linux.modules import ModuleTree

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FLAVOUR = "amd64"
QEMU_SUITE = "trixie"
MODULES = [
    *("virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_console"),
    *("irqbypass", "kvm", "ccp", "kvm-amd", "tun"),
]
APPLETS = ["sh", "mount", "insmod", "mkdir", "ln", "cat", "echo", "switch_root", "poweroff", "cp"]
KEPT = ("PATH", "PYTHONPATH", "HOME", "LANG", "TERM", "XDG_CACHE_HOME", "PYTHONPYCACHEPREFIX")
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check audit=0 "
    "cryptomgr.notests random.trust_cpu=on tsc=reliable"
)


def kernel() -> pathlib.Path:
    """The uncompressed kernel (its decompressor would take the software CPU seconds)."""
    image = initramfs.kernel_image(FLAVOUR)
    plain = packages.cache() / "kernels" / f"{image.name}.elf"
    with packages.locked("nested"):
        if not plain.exists():
            plain.parent.mkdir(exist_ok=True)
            part = plain.with_suffix(".part")
            part.write_bytes(_payload(image.read_bytes()))
            part.rename(plain)
    return plain


def _payload(image: bytes) -> bytes:
    """The ELF file inside a bzImage (Documentation/x86/boot.rst: setup_sects, payload_offset and
    payload_length)."""
    start = ((image[0x1F1] or 4) + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    length = int.from_bytes(image[0x24C:0x250], "little")
    packed = image[start : start + length]
    if not packed.startswith(b"\xfd7zXZ"):
        raise packages.BuildError("the nested tier's kernel is not compressed with xz")
    return lzma.decompress(packed[:-4])


def first_root(environment: dict[str, str], agent: list[str]) -> bytes:
    """The initramfs: busybox, modules, the two stages."""
    archive = Archive()
    for name in ("dev", "proc", "sys", "bin"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", initramfs.busybox(64), 0o755)
    for name in APPLETS:
        archive.link(f"bin/{name}", "busybox")
    modules = ModuleTree(initramfs.kernel_tree(FLAVOUR)).in_order(MODULES)
    for name, data in modules.items():
        archive.file(f"modules/{name}.ko", data)
    archive.file("modules/order", "".join(f"{name}\n" for name in modules))
    archive.file("init", (HERE / "init").read_text(), 0o755)
    archive.file("stage2", (HERE / "stage2").read_text())
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += [f"cd {shlex.quote(os.getcwd())}", f"AGENT={shlex.quote(shlex.join(agent))}"]
    archive.file("environment", "\n".join(lines) + "\n")
    return archive.done()


def qemu() -> tuple[list[str], dict[str, str]]:
    """The start of QEMU's command line, and what its environment needs besides."""
    if own := os.environ.get("PYKVM_NESTED_QEMU"):
        return [own], {}
    tree = packages.unpacked_with_dependencies("qemu-system-x86", QEMU_SUITE)
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    command = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    command += [str(tree / "usr/bin/qemu-system-x86_64")]
    for data in ("qemu", "seabios"):
        command += ["-L", str(tree / "usr/share" / data)]
    return command, {"QEMU_MODULE_DIR": str(libraries / "qemu")}


class Machine:
    """One running VM. `agent` and `beat` are its two ports, as connected sockets."""

    def __init__(self, agent: list[str], *, cpus: int = 1, memory: str = "2G") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pykvm-nested-")
        folder = pathlib.Path(self._folder.name)
        self.console = folder / "console"
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment.update(PYKVM_REQUIRE_KVM="1", PYKVM_NESTED="1", PYTHONDONTWRITEBYTECODE="1")
        (folder / "initrd").write_bytes(first_root(environment, agent))
        command, variables = qemu()
        command += ["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "EPYC,+svm,+npt"]
        command += ["-smp", str(cpus), "-m", memory, "-nodefaults", "-no-user-config"]
        command += ["-display", "none", "-no-reboot", "-net", "none"]
        command += ["-kernel", str(kernel()), "-initrd", str(folder / "initrd")]
        command += ["-append", COMMAND_LINE, "-serial", f"file:{self.console}"]
        share = "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
        command += ["-fsdev", share, "-device", "virtio-9p-pci,fsdev=root,mount_tag=host"]
        command += ["-device", "virtio-serial-pci"]
        for name in ("agent", "beat"):
            command += ["-chardev", f"socket,id={name},path={folder / name},server=on,wait=off"]
            command += ["-device", f"virtserialport,chardev={name},name={name}"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "qemu.log").open("wb"),
            env={**os.environ, **variables},
        )
        try:
            self.agent = self._connect(folder / "agent")
            self.beat = self._connect(folder / "beat")
        except BaseException:
            self.close()
            raise

    def _connect(self, path: pathlib.Path) -> socket.socket:
        deadline = time.monotonic() + 60
        while True:
            end = socket.socket(socket.AF_UNIX)
            try:
                end.connect(str(path))
                return end
            except OSError:
                end.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = pathlib.Path(self._folder.name, "qemu.log").read_text(errors="replace")
                    raise RuntimeError(f"QEMU did not start: {log.strip()}") from None
                time.sleep(0.05)

    @property
    def alive(self) -> bool:
        """False once QEMU has ended."""
        return self._process.poll() is None

    def last_words(self, lines: int = 15) -> str:
        """The end of the console."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Ends the VM and removes its files."""
        self._process.kill()
        self._process.wait()
        for end in (getattr(self, "agent", None), getattr(self, "beat", None)):
            if end is not None:
                end.close()
        self._folder.cleanup()
