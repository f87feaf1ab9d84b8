/* exit_loop real|protected CODE: runs flat code in that mode until it writes to the debug-exit port 0xf4 or halts, completing
 * each PIO and MMIO exit in the plainest way. Reads answer 0x42 in every byte; writes are added up, so that the work cannot
 * be optimised away. Prints one JSON line: exits (without the last) and ns from the first KVM_RUN to the end. */
#include "rawkvm.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

enum { DEBUG_EXIT = 0xf4 };

static uint64_t exits, sum;

static int complete_pio(struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    size_t length = (size_t)run->io.size * run->io.count;
    if (run->io.port == DEBUG_EXIT)
        return 0;
    if (run->io.direction == KVM_EXIT_IO_IN)
        memset(data, 0x42, length);
    else
        sum += data[0];
    return 1;
}

static int complete_mmio(struct kvm_run *run)
{
    if (run->mmio.is_write)
        sum += run->mmio.data[0];
    else
        memset(run->mmio.data, 0x42, sizeof run->mmio.data);
    return 1;
}

static int complete(struct kvm_run *run)
{
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        return complete_pio(run);
    case KVM_EXIT_MMIO:
        return complete_mmio(run);
    case KVM_EXIT_HLT:
        return 0;
    }
    raw_die("exit reason %u after %" PRIu64 " exits", run->exit_reason, exits);
}

int main(int argc, char **argv)
{
    struct raw_vm vm;
    if (argc != 3)
        raw_die("usage: exit_loop real|protected CODE");
    raw_create(&vm, RAW_MEMORY, 0);
    raw_read_file(argv[2], vm.memory + RAW_LOAD, RAW_MEMORY - RAW_LOAD);
    (strcmp(argv[1], "real") ? raw_protected_mode : raw_real_mode)(&vm, RAW_LOAD);

    uint64_t start = raw_now_ns();
    for (;; exits++) {
        if (ioctl(vm.vcpu, KVM_RUN, 0) < 0)
            raw_die("KVM_RUN failed after %" PRIu64 " exits", exits);
        if (!complete(vm.run))
            break;
    }
    uint64_t elapsed = raw_now_ns() - start;
    printf("{\"exits\": %" PRIu64 ", \"ns\": %" PRIu64 ", \"sum\": %" PRIu64 "}\n", exits, elapsed, sum);
    raw_destroy(&vm);
    return 0;
}
