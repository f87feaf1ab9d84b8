/* create COUNT [irqchip]: COUNT times: open /dev/kvm, create a VM with 1 MiB and a vCPU, put one `out` at the entry, run to
 * that first exit, close everything. With `irqchip` also the in-kernel interrupt controllers and PIT, as a whole machine has.
 * Prints one JSON line: median ns from the open to the first exit, and of the closing. */
#include "rawkvm.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static const uint8_t code[] = {0xe6, 0x10, 0xf4}; /* out 0x10, al; hlt */
    if (argc < 2)
        raw_die("usage: create COUNT [irqchip]");
    unsigned long count = raw_number(argv[1]);
    int irqchip = argc > 2 && !strcmp(argv[2], "irqchip");
    uint64_t *up = calloc(count, sizeof *up), *down = calloc(count, sizeof *down);
    if (!count || !up || !down)
        raw_die("cannot keep %lu times", count);

    for (unsigned long i = 0; i < count; i++) {
        struct raw_vm vm;
        uint64_t start = raw_now_ns();
        raw_create(&vm, RAW_MEMORY, irqchip);
        memcpy(vm.memory + RAW_LOAD, code, sizeof code);
        raw_real_mode(&vm, RAW_LOAD);
        if (ioctl(vm.vcpu, KVM_RUN, 0) < 0 || vm.run->exit_reason != KVM_EXIT_IO)
            raw_die("first exit is not the expected PIO write");
        up[i] = raw_now_ns() - start;
        start = raw_now_ns();
        raw_destroy(&vm);
        down[i] = raw_now_ns() - start;
    }
    qsort(up, count, sizeof *up, ascending);
    qsort(down, count, sizeof *down, ascending);
    printf("{\"count\": %lu, \"up_ns\": %" PRIu64 ", \"down_ns\": %" PRIu64 "}\n", count, up[count / 2], down[count / 2]);
    return 0;
}
