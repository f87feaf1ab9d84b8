/* immediate_exit COUNT: KVM_RUN with kvm_run.immediate_exit set, COUNT times: no guest instruction runs, each call comes
 * back at once with EINTR (KVM API 5, "immediate_exit"). What is left is the loop and the way into the kernel and back.
 * Prints one JSON line: exits and ns. */
#include "rawkvm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
    struct raw_vm vm;
    if (argc != 2)
        raw_die("usage: immediate_exit COUNT");
    unsigned long count = raw_number(argv[1]);
    raw_create(&vm, RAW_MEMORY, 0);
    vm.memory[RAW_LOAD] = 0xf4; /* hlt, never reached */
    raw_protected_mode(&vm, RAW_LOAD);
    vm.run->immediate_exit = 1;

    uint64_t start = raw_now_ns();
    for (unsigned long i = 0; i < count; i++)
        if (ioctl(vm.vcpu, KVM_RUN, 0) == 0 || errno != EINTR)
            raw_die("KVM_RUN with immediate_exit did not return EINTR");
    uint64_t elapsed = raw_now_ns() - start;
    printf("{\"exits\": %lu, \"ns\": %" PRIu64 "}\n", count, elapsed);
    raw_destroy(&vm);
    return 0;
}
