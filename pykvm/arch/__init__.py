"""The x86 architecture: registers, modes, descriptors, paging, CPUID and MSR names.

Pure Python over plain values: nothing here opens a file descriptor or talks to KVM. What touches
a virtual CPU (`CpuState.apply`, `registers.get`) does so through the attributes of the object that
it is given.
"""
