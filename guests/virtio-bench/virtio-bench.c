/* virtio-bench: how fast is a virtio device? One image for pykvm (microvm and pc) and QEMU
   (microvm and q35, `-kernel`, by its PVH note).

       blk op=randread|randwrite|read|write|flush bs=4096 qd=8 count=10000 [area=64M] [disk=0]
       net op=echo|stream|sink|serve size=64 qd=1 count=10000 ip=10.0.2.15 peer=10.0.2.2 [nic=0]

   The driver runs in ring 3, which is native on every host, and polls the used ring. What it costs
   a guest to take interrupts is not measured. It prints one line of JSON and writes 0 (1: it did
   not work) to the debug-exit port, so the exit status is 1 (3). */
#include "bench.h"

struct outcome outcome;
uint64_t second = 3000000000;

/* KVM's clock (Documentation/virt/kvm/x86/msr.rst): how TSC ticks become nanoseconds. */
static struct {
    uint32_t version, pad;
    uint64_t timestamp, system_time;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, pads[2];
} volatile clock __attribute__((aligned(32)));

/* TSC ticks a second; 0: the hypervisor does not say. */
static uint64_t tsc_frequency(void)
{
    enum { SYSTEM_TIME_NEW = 0x4b564d01, HAS_CLOCK = 1 << 3 };
    uint32_t r[4];
    cpuid(0x40000000, 0, r);
    if (r[1] != 0x4b4d564b) /* "KVMK" */
        return 0;
    cpuid(0x40000001, 0, r);
    if (!(r[0] & HAS_CLOCK))
        return 0;
    wrmsr(SYSTEM_TIME_NEW, (uintptr_t)&clock | 1);
    if (clock.multiplier == 0)
        return 0;
    uint64_t hz = (1000000000ull << 32) / clock.multiplier;
    wrmsr(SYSTEM_TIME_NEW, 0);
    return clock.shift < 0 ? hz << -clock.shift : hz >> clock.shift;
}

static void __attribute__((noreturn)) leave(int value)
{
    outb(0xf4, value); /* QEMU: -device isa-debug-exit,iobase=0xf4,iosize=1 */
    guest_exit(value);
}

int main(void)
{
    int net = option_word("net"), blk = option_word("blk");
    const char *error = net == blk ? "say what to measure: blk or net" : 0;
    uint64_t hz = tsc_frequency();
    if (hz)
        second = hz;
    if (!error)
        error = net ? net_prepare() : blk_prepare();
    if (!error) {
        ring3_call(net ? net_measure : blk_measure, 0, 0, 0);
        error = outcome.error;
    }
    if (error) {
        print("{\"error\":\"%s\"}\n", error);
        leave(1);
    }
    uint64_t ticks = outcome.end - outcome.begin;
    uint64_t ns = hz ? (ticks / hz) * 1000000000 + (ticks % hz) * 1000000000 / hz : 0;
    (net ? net_describe : blk_describe)();
    print("\"requests\":%lu,\"errors\":%lu,\"bytes\":%lu,\"ticks\":%lu,\"tsc_hz\":%lu,\"ns\":%lu}\n",
          outcome.requests, outcome.errors, outcome.bytes, ticks, hz, ns);
    leave(0);
}
