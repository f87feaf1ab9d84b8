/* The vCPU loop: KVM_RUN until something needs Python. KVM API: 4.10 KVM_RUN, 5 kvm_run. */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include "pykvm_native.h"

#define CODE(kind, size, port, high) \
    ((uint64_t)(kind) | (uint64_t)(size) << 8 | (uint64_t)(port) << 16 | (uint64_t)(high) << 32)

/* Exits whose operation KVM finishes at the next KVM_RUN (API, note under 5 "kvm_run"). */
static int completes_on_entry(uint32_t reason)
{
    switch (reason) {
    case KVM_EXIT_IO: case KVM_EXIT_MMIO: case KVM_EXIT_HYPERCALL: case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR: case KVM_EXIT_XEN: case KVM_EXIT_HYPERV:
        return 1;
    }
    return 0;
}

static long set_in_kernel(struct pykvm_vcpu *v, uint32_t what)
{
    struct kvm_sync_regs *s = &v->run->s.regs;
    if ((what & KVM_SYNC_X86_SREGS) && ioctl(v->fd, KVM_SET_SREGS, &s->sregs) < 0)
        return -errno;
    v->sync_dirty &= ~KVM_SYNC_X86_SREGS;
    if ((what & KVM_SYNC_X86_REGS) && ioctl(v->fd, KVM_SET_REGS, &s->regs) < 0)
        return -errno;
    v->sync_dirty &= ~KVM_SYNC_X86_REGS;
    return 0;
}

/* One KVM_RUN, nothing else. */
static int enter(struct pykvm_vcpu *v)
{
    struct kvm_run *run = v->run;
    run->kvm_valid_regs = v->sync_want;
    int r = ioctl(v->fd, KVM_RUN, 0) < 0 ? -errno : 0;
    v->sync_valid = v->sync_want;
    return r;
}

/* Fields that the user changed while an exit was pending win over what completing it changed;
 * all others keep the completed state (so an IN still delivers RAX when the user set RBX). */
static void merge_words(void *now, const void *base, const void *user, size_t size)
{
    uint64_t *n = now;
    const uint64_t *b = base, *u = user;
    for (size_t i = 0; i < size / 8; i++)
        if (u[i] != b[i])
            n[i] = u[i];
}

long pykvm_complete(struct pykvm_vcpu *v)
{
    struct kvm_run *run = v->run;
    if (!v->pending)
        return 0;
    uint32_t dirty = v->sync_dirty;
    struct kvm_regs user_regs = run->s.regs.regs;
    struct kvm_sregs user_sregs = run->s.regs.sregs;
    v->sync_dirty = 0;
    v->pending = 0;
    v->answer_size = 0;
    pykvm_account_entry(v, pykvm_tsc());
    run->kvm_dirty_regs = 0;
    run->immediate_exit = 1;
    int r = enter(v);
    run->immediate_exit = v->kick ? 1 : 0;
    int further = 0;
    if (r == 0 && run->exit_reason != KVM_EXIT_INTR) {
        further = 1;                    /* the next fragment of the same instruction */
        v->pending = completes_on_entry(run->exit_reason);
        uint64_t now = pykvm_tsc();
        pykvm_account_exit(v, now, now, run->exit_reason);
    } else if (r && r != -EINTR) {
        return r;
    }
    if (dirty) {
        long e = pykvm_fetch(v, dirty);
        if (e < 0)
            return e;
        if (dirty & KVM_SYNC_X86_REGS) {
            struct kvm_regs completed = run->s.regs.regs;
            merge_words(&run->s.regs.regs, &v->base_regs, &user_regs, sizeof user_regs);
            v->base_regs = completed;
        }
        if (dirty & KVM_SYNC_X86_SREGS) {
            struct kvm_sregs completed = run->s.regs.sregs;
            merge_words(&run->s.regs.sregs, &v->base_sregs, &user_sregs, sizeof user_sregs);
            v->base_sregs = completed;
        }
        v->sync_dirty = dirty;
    }
    return further;
}

long pykvm_fetch(struct pykvm_vcpu *v, uint32_t what)
{
    struct kvm_sync_regs *s = &v->run->s.regs;
    uint32_t missing = what & ~v->sync_valid;
    if ((missing & KVM_SYNC_X86_REGS) && ioctl(v->fd, KVM_GET_REGS, &s->regs) < 0)
        return -errno;
    if ((missing & KVM_SYNC_X86_SREGS) && ioctl(v->fd, KVM_GET_SREGS, &s->sregs) < 0)
        return -errno;
    if ((missing & KVM_SYNC_X86_EVENTS) && ioctl(v->fd, KVM_GET_VCPU_EVENTS, &s->events) < 0)
        return -errno;
    v->sync_valid |= what;
    return 0;
}

void pykvm_touch(struct pykvm_vcpu *v, uint32_t what)
{
    uint32_t fresh = what & ~v->sync_dirty;
    if (v->pending) {
        if (fresh & KVM_SYNC_X86_REGS)
            v->base_regs = v->run->s.regs.regs;
        if (fresh & KVM_SYNC_X86_SREGS)
            v->base_sregs = v->run->s.regs.sregs;
    }
    v->sync_dirty |= what;
}

long pykvm_flush(struct pykvm_vcpu *v)
{
    if (!v->sync_dirty)
        return 0;
    if (v->pending) {
        long r = pykvm_complete(v);
        if (r)
            return r < 0 ? r : -EBUSY;  /* the instruction has more exits to come */
    }
    return set_in_kernel(v, v->sync_dirty);
}

/* Changed registers ride on the next KVM_RUN where the host syncs them. */
static long push_dirty(struct pykvm_vcpu *v)
{
    uint32_t carried = v->sync_dirty & v->sync_supported;
    long r = set_in_kernel(v, v->sync_dirty & ~carried);
    v->run->kvm_dirty_regs = carried;
    v->sync_dirty = carried;
    return r;
}

static uint64_t decode(struct pykvm_vcpu *v)
{
    struct kvm_run *run = v->run;
    if (run->exit_reason == KVM_EXIT_IO && run->io.count == 1) {
        uint8_t *data = (uint8_t *)run + run->io.data_offset;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            uint32_t value = 0;
            memcpy(&value, data, run->io.size);
            return CODE(PYKVM_PIO_OUT, run->io.size, run->io.port, value);
        }
        v->answer_size = run->io.size;
        v->answer_at = data;
        return CODE(PYKVM_PIO_IN, run->io.size, run->io.port, 0);
    }
    if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.len <= 8) {
        v->mmio_gpa = run->mmio.phys_addr;
        if (run->mmio.is_write) {
            uint64_t value = 0;
            memcpy(&value, run->mmio.data, run->mmio.len);
            v->mmio_value = value;
            return CODE(PYKVM_MMIO_WRITE, run->mmio.len, 0, 0);
        }
        v->answer_size = run->mmio.len;
        v->answer_at = run->mmio.data;
        return CODE(PYKVM_MMIO_READ, run->mmio.len, 0, 0);
    }
    return CODE(PYKVM_EXIT, 0, 0, 0);
}

/* KVM_RUN was interrupted: by a kick, the watch timer or somebody else's signal? */
static uint64_t interrupted(struct pykvm_vcpu *v)
{
    v->run->immediate_exit = 0;
    if (__atomic_exchange_n(&v->kick, 0, __ATOMIC_SEQ_CST))
        return CODE(PYKVM_KICKED, 0, 0, 0);
    if (!v->tick)
        return CODE(PYKVM_SIGNAL, 0, 0, 0);
    v->tick = 0;
    if (v->deadline_ns && pykvm_now_ns() >= v->deadline_ns)
        return CODE(PYKVM_TIMEOUT, 0, 0, 0);
    pykvm_rearm(v);
    if (v->tick_ns) {
        struct kvm_mp_state mp;
        if (ioctl(v->fd, KVM_GET_MP_STATE, &mp) == 0 && mp.mp_state != KVM_MP_STATE_RUNNABLE) {
            if (mp.mp_state != KVM_MP_STATE_HALTED)
                return CODE(PYKVM_IDLE, 0, 0, mp.mp_state);
            if (pykvm_fetch(v, KVM_SYNC_X86_REGS) == 0 &&
                !(v->run->s.regs.regs.rflags & 0x200))
                return CODE(PYKVM_IDLE, 0, 0, mp.mp_state);
        }
    }
    return CODE(PYKVM_TICK, 0, 0, 0);
}

static uint64_t loop(struct pykvm_vcpu *v)
{
    struct kvm_run *run = v->run;
    for (;;) {
        if (v->trace.lossless && v->trace.head - v->trace.tail >= v->trace.capacity) {
            pykvm_account_entry(v, pykvm_tsc());  /* the last record must be whole when drained */
            return CODE(PYKVM_TRACE_FULL, 0, 0, 0);
        }
        if (v->sync_dirty) {
            if (v->pending) {
                long r = pykvm_complete(v);
                if (r < 0)
                    return CODE(PYKVM_ERROR, 0, 0, -r);
                if (r)
                    goto exited;
            }
            long r = push_dirty(v);
            if (r < 0)
                return CODE(PYKVM_ERROR, 0, 0, -r);
        }
        v->entry_valid = v->sync_valid & KVM_SYNC_X86_REGS;
        if (v->entry_valid)
            v->entry_regs = run->s.regs.regs;
        uint64_t before = pykvm_tsc();
        pykvm_account_entry(v, before);
        int r = enter(v);
        uint64_t after = pykvm_tsc();
        v->pending = 0;
        v->answer_size = 0;
        v->stats.entries++;
        if (r == -EAGAIN) {             /* an AP left wait-for-SIPI */
            v->sync_dirty = 0;
            continue;
        }
        if (r == -EINVAL && run->kvm_dirty_regs) {
            /* sync_dirty stays, and the refused values where they were: Python says which field. */
            v->sync_valid |= run->kvm_dirty_regs & ~v->sync_want;
            run->kvm_dirty_regs = 0;
            return CODE(PYKVM_ERROR, 0, 0, EINVAL);
        }
        v->sync_dirty = 0;
        if (r == -EINTR || (r == 0 && run->exit_reason == KVM_EXIT_INTR)) {
            return interrupted(v);
        }
        if (r) {
            if (r != -EFAULT && r != -EHWPOISON)
                return CODE(PYKVM_ERROR, 0, 0, -r);
            if (run->exit_reason != KVM_EXIT_MEMORY_FAULT)
                return CODE(PYKVM_ERROR, 0, 0, -r);
            pykvm_account_exit(v, before, after, run->exit_reason);
            return CODE(PYKVM_EXIT, 0, 0, -r);
        }
        v->pending = completes_on_entry(run->exit_reason);
        pykvm_account_exit(v, before, after, run->exit_reason);
    exited:
        if (v->coalesced && v->coalesced->first != v->coalesced->last)
            return decode(v) | PYKVM_COALESCED;
        if (v->rules && pykvm_rule_apply(v))
            continue;
        return decode(v);
    }
}

uint64_t pykvm_resume(struct pykvm_vcpu *v)
{
    pykvm_current = v;
    __atomic_store_n(&v->tid, pykvm_thread_id(), __ATOMIC_SEQ_CST);
    uint64_t code = loop(v);
    __atomic_store_n(&v->tid, 0, __ATOMIC_SEQ_CST);
    pykvm_current = NULL;
    return code;
}

uint64_t pykvm_run(struct pykvm_vcpu *v, uint64_t answer)
{
    if (v->answer_size) {
        memcpy(v->answer_at, &answer, v->answer_size);
        v->answer_size = 0;
    }
    return pykvm_resume(v);
}

long pykvm_enter_many(struct pykvm_vcpu *v, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        v->run->immediate_exit = 1;
        uint64_t before = pykvm_tsc();
        pykvm_account_entry(v, before);
        int r = enter(v);
        v->stats.entries++;
        if (r != -EINTR) {
            v->run->immediate_exit = 0;
            return r ? r : -EBUSY;
        }
    }
    v->run->immediate_exit = 0;
    return 0;
}
