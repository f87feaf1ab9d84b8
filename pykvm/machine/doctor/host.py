"""The host around KVM: CPU, kernel, memory features, networking."""

from __future__ import annotations

import mmap
import os
import platform

from pykvm.machine.doctor.result import Section

_MFD_HUGETLB = 4
_HUGE = {"2M": (2 << 20, 21), "1G": (1 << 30, 30)}
_MADV_MERGEABLE = 12


def facts() -> dict[str, str]:
    """Kernel, CPU, number of CPUs, Python: for the head of the report."""
    return {
        "kernel": platform.release(),
        "cpu": _cpu_name(),
        "cpus": str(os.cpu_count() or 1),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def examine(section: Section) -> None:
    """Huge pages, KSM, TUN/TAP: each tried."""
    for name in _HUGE:
        _huge_pages(section, name)
    _transparent(section)
    _ksm(section)
    _tun(section)


def _huge_pages(section: Section, name: str) -> None:
    size, shift = _HUGE[name]
    folder = f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB"
    key, title = f"huge_pages_{name}", f"huge pages, {name}"
    if not os.path.isdir(folder):
        section.add(key, title, False, "this kernel or CPU has none of that size", value=0)
        return
    total = int(_read(f"{folder}/nr_hugepages").strip() or 0)
    free = int(_read(f"{folder}/free_hugepages").strip() or 0)
    problem = _try_huge(size, shift)
    if problem is None:
        section.add(key, title, True, f"{free} of {total} free", value=free)
        return
    section.add(
        key, title, False,
        f"none can be had ({problem}); {total} reserved, {free} free",
        f"reserve some: echo {64 if size < 1 << 30 else 1} | sudo tee {folder}/nr_hugepages",
        value=free,
    )  # fmt: skip


def _try_huge(size: int, shift: int) -> str | None:
    """Maps one huge page and touches it; what went wrong, None if nothing."""
    try:
        fd = os.memfd_create("pykvm-doctor", os.MFD_CLOEXEC | _MFD_HUGETLB | shift << 26)
    except OSError as error:
        return error.strerror or str(error)
    try:
        os.ftruncate(fd, size)
        # Mapping reserves the page, so touching it cannot fail.
        with mmap.mmap(fd, size) as mapping:
            if size <= 2 << 20:
                mapping[0] = 1
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    finally:
        os.close(fd)
    return None


def _transparent(section: Section) -> None:
    key, title = "huge_pages_thp", "transparent huge pages"
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = text.partition("[")[2].partition("]")[0]
    shmem = _read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    shared = shmem.partition("[")[2].partition("]")[0]
    if not chosen:
        section.add(key, title, False, "this kernel has none", value="")
        return
    # Guest RAM is a memfd, which follows the setting for shared memory.
    good = shared in ("always", "within_size", "advise", "force")
    section.add(
        key, title, good,
        f"{chosen}; for shared memory, which guest RAM is: {shared or 'never'}",
        "" if good else "echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        value={"anonymous": chosen, "shared": shared},
    )  # fmt: skip


def _ksm(section: Section) -> None:
    key, title = "ksm", "KSM (merging equal pages)"
    run = _read("/sys/kernel/mm/ksm/run").strip()
    if not run:
        section.add(key, title, False, "this kernel has none", value="")
        return
    with mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        try:
            page.madvise(_MADV_MERGEABLE)
        except OSError as error:
            section.add(key, title, False, error.strerror or str(error), value="refused")
            return
    section.add(
        key, title, run == "1",
        "running" if run == "1" else "there, but switched off",
        "" if run == "1" else "echo 1 | sudo tee /sys/kernel/mm/ksm/run", value=run,
    )  # fmt: skip


def _tun(section: Section) -> None:
    key, title, path = "tun", "TUN/TAP (network)", "/dev/net/tun"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        remedy = "sudo modprobe tun"
        if isinstance(error, PermissionError):
            remedy = f"let this user open it: sudo chmod 666 {path}"
        section.add(key, title, False, f"{path}: {error.strerror}", remedy, value=False)
        return
    section.add(key, title, True, f"{path} opens", value=True)
