/* single_step COUNT: KVM_GUESTDBG_SINGLESTEP over a loop of nops, COUNT steps, each a KVM_EXIT_DEBUG whose pc is read.
 * Prints one JSON line: steps, ns, and the sum of the pcs. */
#include "rawkvm.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
    struct raw_vm vm;
    uint64_t sum = 0;
    if (argc != 2)
        raw_die("usage: single_step COUNT");
    unsigned long count = raw_number(argv[1]);
    raw_create(&vm, RAW_MEMORY, 0);
    memset(vm.memory + RAW_LOAD, 0x90, 62);             /* nop */
    memcpy(vm.memory + RAW_LOAD + 62, "\xeb\xc0", 2);   /* jmp back to the first */
    raw_protected_mode(&vm, RAW_LOAD);
    struct kvm_guest_debug debug = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
    raw_ioctl(vm.vcpu, KVM_SET_GUEST_DEBUG, &debug, "KVM_SET_GUEST_DEBUG");

    uint64_t start = raw_now_ns();
    for (unsigned long i = 0; i < count; i++) {
        if (ioctl(vm.vcpu, KVM_RUN, 0) < 0 || vm.run->exit_reason != KVM_EXIT_DEBUG)
            raw_die("step %lu: exit reason %u, DEBUG expected", i, vm.run->exit_reason);
        sum += vm.run->debug.arch.pc;
    }
    uint64_t elapsed = raw_now_ns() - start;
    printf("{\"exits\": %lu, \"ns\": %" PRIu64 ", \"sum\": %" PRIu64 "}\n", count, elapsed, sum);
    raw_destroy(&vm);
    return 0;
}
