"""Names and one-line meanings of the x86 control, flag, debug and page-table bits.

Every flag type behaves as an `IntFlag`: members are integers, print by name, and carry `.meaning`.
Bits without a name are kept (never dropped or refused), because a register can hold anything.

Sources: Intel SDM vol. 3A ch. 2 (control registers, EFER), ch. 3 and 5 (segment types), ch. 4
(paging), vol. 1 ch. 3 (RFLAGS), vol. 3B ch. 17 (debug registers); AMD APM vol. 2 ch. 3 and 5.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import KEEP, IntEnum, IntFlag

    from pykvm.typed import Self

    class Bits(IntFlag, boundary=KEEP):
        """Base of the flag types: each member is written as `NAME = value, "meaning"`."""

        def __new__(cls, value: int, meaning: str = "") -> Self: ...

        @property
        def meaning(self) -> str:
            """What the bit does, in one line; empty for combinations and unnamed bits."""

        def names(self) -> list[str]:
            """Names of the set bits, lowest first; an unnamed bit n appears as `bitN`."""

        def describe(self) -> str:
            """The set bits as `A|B|bit7`, or `0`."""

else:
    from pykvm.enums import IntEnum, Member, Members

    class Bits(Member, int, metaclass=Members):
        """A set of bits, named or not: what is needed of `IntFlag`, without `enum`."""

        meaning = ""

        @classmethod
        def _make(cls, value, meaning=""):
            member = int.__new__(cls, value)
            member.meaning = meaning
            return member

        def __new__(cls, value=0):
            member = cls._members.get(value)
            return int.__new__(cls, value) if member is None else member

        @property
        def value(self):
            return int(self)

        def names(self):
            members = type(self)._members
            value = int(self)
            return [
                members[1 << n].name if 1 << n in members else f"bit{n}"
                for n in range(value.bit_length())
                if value >> n & 1
            ]

        def describe(self):
            return "|".join(self.names()) or "0"

        __str__ = describe

        def __repr__(self):
            return f"{type(self).__name__}({int(self):#x}: {self.describe()})"

        def __or__(self, other):
            return type(self)(int(self) | int(other))

        def __and__(self, other):
            return type(self)(int(self) & int(other))

        def __xor__(self, other):
            return type(self)(int(self) ^ int(other))

        __ror__, __rand__, __rxor__ = __or__, __and__, __xor__

        def __contains__(self, other):
            return int(self) & int(other) == int(other)

        def __iter__(self):
            value = int(self)
            return (type(self)(1 << n) for n in range(value.bit_length()) if value >> n & 1)


class CR0(Bits):
    """Control register 0 (SDM vol. 3A 2.5)."""

    PE = 1 << 0, "Protection Enable: protected mode; clear is real mode"
    MP = 1 << 1, "Monitor Coprocessor: WAIT/FWAIT honours TS"
    EM = 1 << 2, "Emulation: x87 raises #NM, SSE raises #UD"
    TS = 1 << 3, "Task Switched: the next FPU/SSE instruction raises #NM"
    ET = 1 << 4, "Extension Type: 387 present; hard-wired to 1"
    NE = 1 << 5, "Numeric Error: x87 errors raise #MF instead of an external interrupt"
    WP = 1 << 16, "Write Protect: read-only pages bind the supervisor too"
    AM = 1 << 18, "Alignment Mask: RFLAGS.AC is effective in ring 3"
    NW = 1 << 29, "Not Write-through: must not be set without CD"
    CD = 1 << 30, "Cache Disable"
    PG = 1 << 31, "Paging: needs PE"


class CR4(Bits):
    """Control register 4 (SDM vol. 3A 2.5)."""

    VME = 1 << 0, "Virtual-8086 Mode Extensions"
    PVI = 1 << 1, "Protected-mode Virtual Interrupts"
    TSD = 1 << 2, "Time Stamp Disable: RDTSC is for ring 0 only"
    DE = 1 << 3, "Debugging Extensions: DR4/DR5 raise #UD, I/O breakpoints work"
    PSE = 1 << 4, "Page Size Extensions: 4 MiB pages with 32-bit paging"
    PAE = 1 << 5, "Physical Address Extension: 64-bit page-table entries; needed for long mode"
    MCE = 1 << 6, "Machine Check Enable"
    PGE = 1 << 7, "Page Global Enable: global pages survive a CR3 write"
    PCE = 1 << 8, "Performance Counter Enable: RDPMC in every ring"
    OSFXSR = 1 << 9, "the OS uses FXSAVE: enables SSE"
    OSXMMEXCPT = 1 << 10, "the OS handles #XM (SIMD floating-point exceptions)"
    UMIP = 1 << 11, "User-Mode Instruction Prevention: SGDT, SIDT, SLDT, SMSW, STR are for ring 0"
    LA57 = 1 << 12, "57-bit linear addresses: five-level paging"
    VMXE = 1 << 13, "VMX Enable"
    SMXE = 1 << 14, "Safer Mode Extensions Enable"
    FSGSBASE = 1 << 16, "RDFSBASE, WRGSBASE and their kin work"
    PCIDE = 1 << 17, "Process-Context Identifiers: only in long mode"
    OSXSAVE = 1 << 18, "XSAVE and XGETBV work, CPUID.1:ECX.OSXSAVE is set"
    KL = 1 << 19, "Key Locker"
    SMEP = 1 << 20, "the supervisor cannot execute user pages"
    SMAP = 1 << 21, "the supervisor cannot access user pages unless RFLAGS.AC is set"
    PKE = 1 << 22, "Protection Keys for user pages (PKRU)"
    CET = 1 << 23, "Control-flow Enforcement: shadow stacks, indirect branch tracking; needs CR0.WP"
    PKS = 1 << 24, "Protection Keys for supervisor pages (IA32_PKRS)"
    UINTR = 1 << 25, "User Interrupts"
    LASS = 1 << 27, "Linear Address Space Separation"
    LAM_SUP = 1 << 28, "Linear Address Masking for supervisor pointers"
    FRED = 1 << 32, "Flexible Return and Event Delivery"


class CR3(Bits):
    """The control bits of control register 3 (SDM vol. 3A 2.5 and 4.5); the rest is an address."""

    PWT = 1 << 3, "write-through access to the top page table (when CR4.PCIDE is clear)"
    PCD = 1 << 4, "uncached access to the top page table (when CR4.PCIDE is clear)"
    LAM_U57 = 1 << 61, "Linear Address Masking: user pointers use 57 bits"
    LAM_U48 = 1 << 62, "Linear Address Masking: user pointers use 48 bits"


class EFER(Bits):
    """Extended Feature Enable Register, MSR 0xc0000080 (SDM vol. 3A 2.2.1, APM vol. 2 3.1.7)."""

    SCE = 1 << 0, "SYSCALL Enable"
    LME = 1 << 8, "Long Mode Enable"
    LMA = 1 << 10, "Long Mode Active: LME and CR0.PG"
    NXE = 1 << 11, "No-Execute Enable: bit 63 of page-table entries"
    SVME = 1 << 12, "Secure Virtual Machine Enable (AMD)"
    LMSLE = 1 << 13, "Long Mode Segment Limit Enable (AMD)"
    FFXSR = 1 << 14, "Fast FXSAVE/FXRSTOR (AMD)"
    TCE = 1 << 15, "Translation Cache Extension (AMD)"
    MCOMMIT = 1 << 17, "MCOMMIT instruction enable (AMD)"
    INTWB = 1 << 18, "interruptible WBINVD enable (AMD)"
    UAIE = 1 << 20, "Upper Address Ignore Enable (AMD)"
    AIBRSE = 1 << 21, "Automatic IBRS Enable (AMD)"


class RFLAGS(Bits):
    """The flags register (SDM vol. 1 3.4.3)."""

    CF = 1 << 0, "Carry"
    FIXED = 1 << 1, "always 1"
    PF = 1 << 2, "Parity of the low byte is even"
    AF = 1 << 4, "Auxiliary carry out of bit 3"
    ZF = 1 << 6, "Zero"
    SF = 1 << 7, "Sign"
    TF = 1 << 8, "Trap: single-step"
    IF = 1 << 9, "Interrupt enable"
    DF = 1 << 10, "Direction: string instructions go down"
    OF = 1 << 11, "Overflow"
    IOPL0 = 1 << 12, "I/O Privilege Level, low bit"
    IOPL1 = 1 << 13, "I/O Privilege Level, high bit"
    NT = 1 << 14, "Nested Task"
    RF = 1 << 16, "Resume: ignore instruction breakpoints once"
    VM = 1 << 17, "Virtual-8086 mode"
    AC = 1 << 18, "Alignment Check; with CR4.SMAP, access to user pages allowed"
    VIF = 1 << 19, "Virtual Interrupt flag"
    VIP = 1 << 20, "Virtual Interrupt Pending"
    ID = 1 << 21, "CPUID exists when this can be changed"


class DR6(Bits):
    """Debug status register (SDM vol. 3B 17.2.3). Reset value 0xffff0ff0."""

    B0 = 1 << 0, "breakpoint 0 met its condition"
    B1 = 1 << 1, "breakpoint 1 met its condition"
    B2 = 1 << 2, "breakpoint 2 met its condition"
    B3 = 1 << 3, "breakpoint 3 met its condition"
    BLD = 1 << 11, "clear after a bus lock (active low)"
    BD = 1 << 13, "debug register access while DR7.GD was set"
    BS = 1 << 14, "single step"
    BT = 1 << 15, "task switch to a TSS with the T flag"
    RTM = 1 << 16, "clear after a #DB inside a transaction (active low)"


class DR7(Bits):
    """Debug control register (SDM vol. 3B 17.2.4); condition and length fields are numbers."""

    L0 = 1 << 0, "breakpoint 0 enabled for this task"
    G0 = 1 << 1, "breakpoint 0 enabled"
    L1 = 1 << 2, "breakpoint 1 enabled for this task"
    G1 = 1 << 3, "breakpoint 1 enabled"
    L2 = 1 << 4, "breakpoint 2 enabled for this task"
    G2 = 1 << 5, "breakpoint 2 enabled"
    L3 = 1 << 6, "breakpoint 3 enabled for this task"
    G3 = 1 << 7, "breakpoint 3 enabled"
    LE = 1 << 8, "exact data breakpoints, this task (old CPUs)"
    GE = 1 << 9, "exact data breakpoints (old CPUs)"
    FIXED = 1 << 10, "always 1"
    RTM = 1 << 11, "advanced debugging of transactions"
    GD = 1 << 13, "General Detect: the next debug register access raises #DB"


class PTE(Bits):
    """Page-table entry bits, all paging modes (SDM vol. 3A tables 4-5, 4-6, 4-14 to 4-20)."""

    P = 1 << 0, "Present"
    RW = 1 << 1, "writable"
    US = 1 << 2, "accessible from ring 3"
    PWT = 1 << 3, "page-level Write-Through (PAT index bit 0)"
    PCD = 1 << 4, "page-level Cache Disable (PAT index bit 1)"
    A = 1 << 5, "Accessed"
    D = 1 << 6, "Dirty"
    PS = 1 << 7, "Page Size: this entry maps a page; in a 4 KiB entry the same bit is PAT"
    G = 1 << 8, "Global"
    PAT_LARGE = 1 << 12, "PAT index bit 2 of a 2 MiB, 4 MiB or 1 GiB page"
    XD = 1 << 63, "eXecute Disable; reserved unless EFER.NXE"


class PageFault(Bits):
    """Error code of #PF (SDM vol. 3A 4.7)."""

    P = 1 << 0, "a protection violation; clear: an entry was not present"
    WR = 1 << 1, "the access was a write"
    US = 1 << 2, "the access was made in ring 3"
    RSVD = 1 << 3, "a reserved bit was set in an entry"
    ID = 1 << 4, "the access was an instruction fetch"
    PK = 1 << 5, "a protection key forbade it"
    SS = 1 << 6, "a shadow-stack access"


class SegmentType(IntEnum):
    """Types of code and data descriptors (S = 1), SDM vol. 3A table 3-1."""

    DATA_RO = 0
    DATA_RO_ACCESSED = 1
    DATA_RW = 2
    DATA_RW_ACCESSED = 3
    DATA_RO_DOWN = 4
    DATA_RO_DOWN_ACCESSED = 5
    DATA_RW_DOWN = 6
    DATA_RW_DOWN_ACCESSED = 7
    CODE_X = 8
    CODE_X_ACCESSED = 9
    CODE_XR = 10
    CODE_XR_ACCESSED = 11
    CODE_X_CONFORMING = 12
    CODE_X_CONFORMING_ACCESSED = 13
    CODE_XR_CONFORMING = 14
    CODE_XR_CONFORMING_ACCESSED = 15


class SystemType(IntEnum):
    """Types of system descriptors (S = 0), SDM vol. 3A table 3-2."""

    TSS16_AVAILABLE = 1
    LDT = 2
    TSS16_BUSY = 3
    CALL_GATE16 = 4
    TASK_GATE = 5
    INTERRUPT_GATE16 = 6
    TRAP_GATE16 = 7
    TSS_AVAILABLE = 9
    TSS_BUSY = 11
    CALL_GATE = 12
    INTERRUPT_GATE = 14
    TRAP_GATE = 15


class Vector(IntEnum):
    """The architectural exception vectors (SDM vol. 3A table 6-1)."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21
    HV = 28
    VC = 29
    SX = 30
