/* exit_loop CODE: runs the flat 32-bit code until it halts, completing each PIO and MMIO exit in the plainest way.
 * Reads answer 0x42 in every byte; writes are added up, so that the work cannot be optimised away.
 * Prints one JSON line: exits (without the final HLT) and ns from the first KVM_RUN to the HLT. */
#include "rawkvm.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

static uint64_t exits, sum;

static void complete_pio(struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    size_t length = (size_t)run->io.size * run->io.count;
    if (run->io.direction == KVM_EXIT_IO_IN)
        memset(data, 0x42, length);
    else
        sum += data[0];
}

static void complete_mmio(struct kvm_run *run)
{
    if (run->mmio.is_write)
        sum += run->mmio.data[0];
    else
        memset(run->mmio.data, 0x42, sizeof run->mmio.data);
}

int main(int argc, char **argv)
{
    struct raw_vm vm;
    if (argc != 2)
        raw_die("usage: exit_loop CODE");
    raw_create(&vm, RAW_MEMORY, 0);
    raw_read_file(argv[1], vm.memory + RAW_LOAD, RAW_MEMORY - RAW_LOAD);
    raw_protected_mode(&vm, RAW_LOAD);

    uint64_t start = raw_now_ns();
    for (;;) {
        if (ioctl(vm.vcpu, KVM_RUN, 0) < 0)
            raw_die("KVM_RUN failed after %" PRIu64 " exits", exits);
        if (vm.run->exit_reason == KVM_EXIT_IO)
            complete_pio(vm.run);
        else if (vm.run->exit_reason == KVM_EXIT_MMIO)
            complete_mmio(vm.run);
        else
            break;
        exits++;
    }
    uint64_t elapsed = raw_now_ns() - start;
    if (vm.run->exit_reason != KVM_EXIT_HLT)
        raw_die("exit reason %u after %" PRIu64 " exits, HLT expected", vm.run->exit_reason, exits);
    printf("{\"exits\": %" PRIu64 ", \"ns\": %" PRIu64 ", \"sum\": %" PRIu64 "}\n", exits, elapsed, sum);
    raw_destroy(&vm);
    return 0;
}
