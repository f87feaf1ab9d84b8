"""One vCPU from one state again and again: a fuzzer's rounds, without a `Machine` around them.

The way back is short where the guest itself returns to its beginning: then only the pages that it
wrote are put back (native/src/round.c). `restore()` puts the vCPU back, too.
"""

from __future__ import annotations

from pykvm._native import ffi, lib
from pykvm.errors import PykvmError
from pykvm.kvm.errors import KvmError
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.machine.snapshot.ram import RamImage, RamTracker
from pykvm.machine.snapshot.vcpu import VcpuImage, VcpuKind, abandon
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu, Vm
    from pykvm.kvm.region import MemoryRegion

OUT, EXIT, SIGNAL, TIMEOUT = lib.PYKVM_PIO_OUT, lib.PYKVM_EXIT, lib.PYKVM_SIGNAL, lib.PYKVM_TIMEOUT
KICKED = lib.PYKVM_KICKED


_KEEP = 16
"""Pages that may stay writable between rounds: copying one costs less than the fault of a write."""


class Stop(NamedTuple):
    """Why a round's guest stopped: `kind` is one of this module's, else of another exit."""

    kind: int
    port: int
    value: int


class Phases(NamedTuple):
    """Nanoseconds of the last round by phase, and how many pages were put back."""

    put: int
    run: int
    dirty_log: int
    copy: int
    pages: int


class _Host:
    """What `VcpuKind` and `RamTracker` want of a machine."""

    irqchip = "none"

    def __init__(self, vm: Vm, vcpu: Vcpu, ram: MemoryRegion) -> None:
        self.vm = vm
        self.vcpus = [vcpu]
        self.memory = GuestMemory([ram])


class Rounds:
    """`vcpu` of `vm` with one region `ram` that is put back, and one that is not.

    - `shared`: host memory that the guest sees and no reset touches.
    - `place`: offset in it of two words: the guest-virtual address and length of the input.
    - `room`: (offset, bytes) in it for inputs, which end where the room does; `room_gva` is its
      guest-virtual address.
    - `cleared`: (offset, bytes) in it that are zeroed before each round.
    - `timeout`: seconds that a round may take; 0: any time.
    """

    def __init__(
        self,
        vm: Vm,
        vcpu: Vcpu,
        ram: MemoryRegion,
        shared: MemoryRegion,
        *,
        place: int,
        room: tuple[int, int],
        room_gva: int,
        cleared: tuple[int, int],
        timeout: float,
    ) -> None:
        host: Any = _Host(vm, vcpu, ram)
        self._vcpu = vcpu
        self._ram = RamTracker(host)
        self._ram.c.keep = _KEEP
        self._kind = VcpuKind(host)
        self._image: VcpuImage | None = None
        self._memory: RamImage | None = None
        self._shared = ffi.from_buffer(shared.view)
        self.c: Any = ffi.new("struct pykvm_round *")
        self.c.vcpu = vcpu._native
        self.c.input, self.c.input_room = self._shared + room[0], room[1]
        self.c.input_gva = room_gva
        self.c.place = ffi.cast("uint64_t *", self._shared + place)
        self.c.map, self.c.map_size = self._shared + cleared[0], cleared[1]
        self.c.timeout_ns = int(timeout * 1e9)

    def begin(self) -> None:
        """The state now is what rounds start from; no exit is pending."""
        self._image = VcpuImage.take(self._vcpu, self._kind)
        self._memory = self._ram.take()
        self.c.ram, self.c.image = self._ram.c, self._memory.c

    def run(self, data: bytes) -> Stop:
        """One input, to the guest's next stop. Raises `ValueError` for one that is too long."""
        self._check()
        result = lib.pykvm_round_run(self.c, data, len(data))
        if result < 0:
            room = self.c.input_room
            if len(data) > room:
                raise ValueError(f"an input of {len(data)} bytes does not fit into {room}")
            raise KvmError("timer_create", -result)
        return self._stop()

    def go_on(self) -> Stop:
        """After a `SIGNAL`."""
        lib.pykvm_round_go_on(self.c)
        return self._stop()

    def _stop(self) -> Stop:
        code = int(self.c.code)
        kind = code & 0x7F
        if kind == lib.PYKVM_ERROR:
            raise KvmError("KVM_RUN", code >> 32)
        return Stop(kind, code >> 16 & 0xFFFF, code >> 32)

    def reset(self) -> int:
        """Puts memory back; the number of pages that were written."""
        done = lib.pykvm_round_reset(self.c)
        if done < 0:
            raise KvmError("KVM_CLEAR_DIRTY_LOG", -done)
        return int(done)

    def restore(self) -> int:
        """Puts the vCPU back as well."""
        image = self._check()
        abandon(self._vcpu)
        image.put(self._vcpu)
        return self.reset()

    def difference(self) -> str | None:
        """The first thing that is not as it was at `begin()`, for tests of resets."""
        image = self._check()
        assert self._memory is not None
        found = self._ram.difference(self._memory)
        if found is not None:
            gpa, then, now = found
            return f"memory at {gpa:#x}: {then:#04x} then, {now:#04x} now"
        now_image = VcpuImage.take(self._vcpu, self._kind)
        for name in ("sregs", "events", "debugregs", "xcrs"):
            size = ffi.sizeof(getattr(image.c, name))
            pair = [bytes(ffi.buffer(ffi.addressof(i.c, name), size)) for i in (image, now_image)]
            if pair[0] != pair[1]:
                return f"{name} of the vCPU"
        return None

    @property
    def phases(self) -> Phases:
        """Of the last round."""
        r = self.c
        return Phases(r.put_ns, r.run_ns, r.log_ns, r.copy_ns, r.pages)

    def _check(self) -> VcpuImage:
        if self._image is None:
            raise SnapshotError("no round has a beginning yet; call begin()")
        if self._vcpu.closed:
            raise PykvmError("the VM is closed")
        return self._image
