/* Per-vCPU accounting: counts and cycles by exit reason, port and MMIO page; the trace ring. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "pykvm_native.h"

static uint32_t saturate(uint64_t cycles) { return cycles > UINT32_MAX ? UINT32_MAX : (uint32_t)cycles; }

static struct pykvm_count *page_slot(struct pykvm_stats *s, uint64_t gpa)
{
    uint64_t page = (gpa >> 12) + 1;    /* 0 marks a free slot */
    uint32_t at = (uint32_t)((page * 0x9E3779B97F4A7C15u) >> 54);
    for (int probe = 0; probe < 16; probe++, at = (at + 1) % PYKVM_MMIO_PAGES) {
        struct pykvm_page_count *slot = &s->page[at];
        if (slot->page == page)
            return &slot->c;
        if (!slot->page) {
            slot->page = page;
            return &slot->c;
        }
    }
    return &s->mmio_other;
}

static void record(struct pykvm_vcpu *v, uint64_t cycles, uint64_t after, uint32_t reason)
{
    struct pykvm_trace *t = &v->trace;
    struct kvm_run *run = v->run;
    struct pykvm_record *r = &t->ring[t->head & (t->capacity - 1)];
    memset(r, 0, sizeof *r);
    r->tsc = after;
    r->run_cycles = saturate(cycles);
    r->reason = (uint16_t)reason;
    r->sequence = t->head;
    if (v->sync_valid & KVM_SYNC_X86_REGS)
        r->rip = run->s.regs.regs.rip;
    if (v->sync_valid & KVM_SYNC_X86_SREGS)
        r->cs_base = run->s.regs.sregs.cs.base;
    switch (reason) {
    case KVM_EXIT_IO:
        r->address = run->io.port;
        r->size = run->io.size;
        r->count = run->io.count;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            r->flags = PYKVM_T_WRITE | PYKVM_T_VALUE;
            memcpy(&r->value, (uint8_t *)run + run->io.data_offset, run->io.size);
        }
        break;
    case KVM_EXIT_MMIO:
        r->address = run->mmio.phys_addr;
        r->size = (uint8_t)run->mmio.len;
        r->count = 1;
        if (run->mmio.is_write) {
            r->flags = PYKVM_T_WRITE | PYKVM_T_VALUE;
            memcpy(&r->value, run->mmio.data, r->size > 8 ? 8 : r->size);
        }
        break;
    case KVM_EXIT_X86_WRMSR:
        r->flags = PYKVM_T_WRITE | PYKVM_T_VALUE;
        r->value = run->msr.data;
        /* fall through */
    case KVM_EXIT_X86_RDMSR:
        r->address = run->msr.index;
        break;
    case KVM_EXIT_HYPERCALL:
        r->address = run->hypercall.nr;
        break;
    }
    v->last_record = r;
    __atomic_store_n(&t->head, t->head + 1, __ATOMIC_RELEASE);
}

void pykvm_account_exit(struct pykvm_vcpu *v, uint64_t before, uint64_t after, uint32_t reason)
{
    struct pykvm_stats *s = &v->stats;
    uint64_t cycles = after - before;
    struct pykvm_count *c = &s->reason[reason < PYKVM_REASONS ? reason : PYKVM_REASONS - 1];
    c->count++;
    c->run_cycles += cycles;
    v->last_reason = c;
    v->last_place = NULL;
    if (reason == KVM_EXIT_IO)
        v->last_place = &s->port[v->run->io.port];
    else if (reason == KVM_EXIT_MMIO)
        v->last_place = page_slot(s, v->run->mmio.phys_addr);
    if (v->last_place) {
        v->last_place->count++;
        v->last_place->run_cycles += cycles;
    }
    v->exit_tsc = after;
    if (v->trace.ring)
        record(v, cycles, after, reason);
}

/* Called just before re-entering: what the exit cost, and what a read was answered with. */
void pykvm_account_entry(struct pykvm_vcpu *v, uint64_t now)
{
    if (!v->last_reason)
        return;
    uint64_t cycles = now - v->exit_tsc;
    v->last_reason->handle_cycles += cycles;
    if (v->last_place)
        v->last_place->handle_cycles += cycles;
    v->last_reason = NULL;
    struct pykvm_record *r = v->last_record;
    if (!r)
        return;
    v->last_record = NULL;
    r->handle_cycles = saturate(cycles);
    struct kvm_run *run = v->run;
    if (!(r->flags & PYKVM_T_VALUE)) {
        if (r->reason == KVM_EXIT_IO)
            memcpy(&r->value, (uint8_t *)run + run->io.data_offset, r->size);
        else if (r->reason == KVM_EXIT_MMIO)
            memcpy(&r->value, run->mmio.data, r->size);
        else if (r->reason == KVM_EXIT_X86_RDMSR)
            r->value = run->msr.data;
        else
            return;
        r->flags |= PYKVM_T_VALUE;
    }
}

void pykvm_clock(uint64_t *tsc, uint64_t *ns)
{
    *ns = pykvm_now_ns();
    *tsc = pykvm_tsc();
}

static void *sparse(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

long pykvm_trace_start(struct pykvm_vcpu *v, uint64_t capacity, int lossless)
{
    if (capacity == 0 || capacity > (1u << 26) || (capacity & (capacity - 1)))
        return -EINVAL;
    pykvm_trace_stop(v);
    v->trace.ring = sparse(capacity * sizeof *v->trace.ring);
    if (!v->trace.ring)
        return -ENOMEM;
    v->trace.capacity = capacity;
    v->trace.head = v->trace.tail = 0;
    v->trace.lossless = (uint32_t)lossless;
    return 0;
}

void pykvm_trace_stop(struct pykvm_vcpu *v)
{
    if (v->trace.ring)
        munmap(v->trace.ring, v->trace.capacity * sizeof *v->trace.ring);
    memset(&v->trace, 0, sizeof v->trace);
    v->last_record = NULL;
}

struct pykvm_vcpu *pykvm_vcpu_new(int fd, void *run, uint32_t run_size, uint32_t sync_supported)
{
    struct pykvm_vcpu *v = calloc(1, sizeof *v);
    if (!v)
        return NULL;
    v->fd = fd;
    v->run = run;
    v->run_size = run_size;
    v->sync_supported = sync_supported;
    v->sync_want = sync_supported & KVM_SYNC_X86_REGS;
    v->stats.port = sparse(65536 * sizeof *v->stats.port);
    v->stats.page = calloc(PYKVM_MMIO_PAGES, sizeof *v->stats.page);
    if (!v->stats.port || !v->stats.page) {
        pykvm_vcpu_free(v);
        return NULL;
    }
    return v;
}

void pykvm_vcpu_free(struct pykvm_vcpu *v)
{
    if (!v)
        return;
    pykvm_unwatch(v);
    pykvm_trace_stop(v);
    if (v->stats.port)
        munmap(v->stats.port, 65536 * sizeof *v->stats.port);
    free(v->stats.page);
    free(v);
}
