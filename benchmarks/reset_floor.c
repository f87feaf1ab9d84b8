/* The floor of benchmarks/reset.py: what a reset cannot do without, in a loop of plain C. */
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

struct op { int fd; unsigned long request; void *argument; };

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int put(const struct op *op, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (ioctl(op[i].fd, op[i].request, op[i].argument) < 0)
            return -1;
    return 0;
}

/* By the dirty log of one slot; the ns that it took, 0 for a failure. */
uint64_t floor_log(int vm, uint32_t slot, uint64_t pages, uint8_t *memory, const uint8_t *shadow,
                   uint64_t *bitmap, const struct op *op, unsigned count, uint64_t *copied)
{
    uint64_t start = now(), words = (pages + 63) / 64, first = 0, last = words;
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};
    if (ioctl(vm, KVM_GET_DIRTY_LOG, &log) < 0)
        return 0;
    while (first < words && !bitmap[first])
        first++;
    while (last > first && !bitmap[last - 1])
        last--;
    *copied = 0;
    if (first < last) {
        uint64_t end = last * 64 < pages ? last * 64 : pages;
        struct kvm_clear_dirty_log clear = {.slot = slot, .first_page = first * 64,
            .num_pages = (uint32_t)(end - first * 64), .dirty_bitmap = bitmap + first};
        if (ioctl(vm, KVM_CLEAR_DIRTY_LOG, &clear) < 0)
            return 0;
        for (uint64_t w = first; w < last; w++)
            for (uint64_t left = bitmap[w]; left; left &= left - 1) {
                uint64_t at = (w * 64 + (uint64_t)__builtin_ctzll(left)) * 4096;
                memcpy(memory + at, shadow + at, 4096);
                ++*copied;
            }
    }
    return put(op, count) ? 0 : now() - start;
}

/* By a dirty ring; `next` is where it is read. */
uint64_t floor_ring(int vm, struct kvm_dirty_gfn *ring, uint32_t size, uint32_t *next,
                    uint8_t *memory, const uint8_t *shadow, const struct op *op, unsigned count,
                    uint64_t *copied)
{
    uint64_t start = now();
    *copied = 0;
    for (;; ++*next) {
        struct kvm_dirty_gfn *e = &ring[*next % size];
        if ((__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & 3) != KVM_DIRTY_GFN_F_DIRTY)
            break;
        memcpy(memory + e->offset * 4096, shadow + e->offset * 4096, 4096);
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        ++*copied;
    }
    if (*copied && ioctl(vm, KVM_RESET_DIRTY_RINGS, 0) < 0)
        return 0;
    return put(op, count) ? 0 : now() - start;
}

/* Everything is copied, whatever was written. */
uint64_t floor_full(uint64_t pages, uint8_t *memory, const uint8_t *shadow, const struct op *op,
                    unsigned count)
{
    uint64_t start = now();
    memcpy(memory, shadow, pages * 4096);
    return put(op, count) ? 0 : now() - start;
}
