"""How the CPUs of a machine are grouped, and the APIC IDs that follow from it.

Source: SDM vol. 3A 9.9 (hierarchical mapping of APIC IDs); APM vol. 3 appendix E.5.
"""

from __future__ import annotations

from pykvm.arch.errors import ArchError
from pykvm.typed import NamedTuple


class CpuModelError(ArchError):
    """A CPU model, feature or topology that cannot be: what is wrong and what to write instead."""


def bits_for(count: int) -> int:
    """Width of a field that numbers `count` things."""
    return (count - 1).bit_length()


class Topology(NamedTuple):
    """Sockets of dies of cores of threads. An APIC ID has a bit field for each of the four."""

    sockets: int = 1
    dies: int = 1
    cores: int = 1
    threads: int = 1

    @property
    def cpus(self) -> int:
        """How many CPUs that makes."""
        return self.sockets * self.per_socket

    @property
    def per_socket(self) -> int:
        """Logical CPUs in a socket."""
        return self.dies * self.cores * self.threads

    @property
    def core_shift(self) -> int:
        """Bit of an APIC ID where the core's number begins."""
        return bits_for(self.threads)

    @property
    def die_shift(self) -> int:
        """Bit of an APIC ID where the die's number begins."""
        return self.core_shift + bits_for(self.cores)

    @property
    def socket_shift(self) -> int:
        """Bit of an APIC ID where the socket's number begins."""
        return self.die_shift + bits_for(self.dies)

    def apic_id(self, index: int) -> int:
        """APIC ID of CPU `index`, counted thread by thread. IDs have gaps unless counts are 2ⁿ."""
        rest, thread = divmod(index, self.threads)
        rest, core = divmod(rest, self.cores)
        socket, die = divmod(rest, self.dies)
        return (
            socket << self.socket_shift | die << self.die_shift | core << self.core_shift | thread
        )

    def apic_ids(self) -> list[int]:
        """APIC IDs of all CPUs, the boot CPU's first."""
        return [self.apic_id(index) for index in range(self.cpus)]

    def __str__(self) -> str:
        return ",".join(f"{name}={n}" for name, n in zip(self._fields, self, strict=True))


def topology_for(cpus: int, text: str = "") -> Topology:
    """The topology that `text` describes (`sockets=2,cores=2,threads=1`), or one socket of cores.

    What is not said follows from the number of CPUs: cores first, then sockets. Raises
    `CpuModelError` for an unknown word, a number below 1, or parts that do not multiply to `cpus`.
    """
    given: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in Topology._fields:
            raise CpuModelError(
                f"there is no CPU topology part {key!r}; use {', '.join(Topology._fields)}"
            )
        if not value.isdecimal() or not 1 <= int(value) <= 4096:
            raise CpuModelError(f"{key}={value} in the CPU topology: a number from 1 to 4096")
        given[key] = int(value)
    known = Topology(**given)
    for free in ("cores", "sockets"):
        if free not in given and cpus % known.cpus == 0:
            known = known._replace(**{free: cpus // known.cpus})
    if known.cpus != cpus:
        raise CpuModelError(f"the CPU topology {known} has {known.cpus} CPUs, the machine {cpus}")
    return known
