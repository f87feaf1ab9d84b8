/* A vCPU of a snapshot, taken and put back. The order of the ioctls matters: what later ones depend
 * on comes first (KVM API, 4.13 KVM_SET_SREGS, 4.58 KVM_SET_LAPIC, 4.31 KVM_SET_VCPU_EVENTS). */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include "pykvm_native.h"

#define MSR_TSC 0x10u
#define STRING_EXITS 256           /* of one instruction, until its count is taken away */

#define TRY(which, call)                     \
    do {                                     \
        *step = (which);                     \
        if ((call) < 0)                      \
            return -errno;                   \
    } while (0)

static long attribute(int fd, unsigned long request, uint64_t *value)
{
    struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)value,
    };
    return ioctl(fd, request, &attr);
}

static long one_msr(int fd, unsigned long request, uint32_t index, uint64_t *value)
{
    struct { struct kvm_msrs head; struct kvm_msr_entry entry; } one;
    memset(&one, 0, sizeof one);
    one.head.nmsrs = 1;
    one.entry.index = index;
    one.entry.data = *value;
    long done = ioctl(fd, request, &one);
    if (done == 1)
        *value = one.entry.data;
    else if (done == 0)
        errno = ENXIO;
    return done == 1 ? 0 : -1;
}

long pykvm_image_take(struct pykvm_vcpu *v, struct pykvm_vcpu_image *m, uint32_t *step)
{
    int fd = v->fd;
    TRY(PYKVM_RS_REGS, ioctl(fd, KVM_GET_REGS, &m->regs));
    TRY(PYKVM_RS_SREGS, ioctl(fd, KVM_GET_SREGS, &m->sregs));
    TRY(PYKVM_RS_EVENTS, ioctl(fd, KVM_GET_VCPU_EVENTS, &m->events));
    TRY(PYKVM_RS_DEBUGREGS, ioctl(fd, KVM_GET_DEBUGREGS, &m->debugregs));
    TRY(PYKVM_RS_MP_STATE, ioctl(fd, KVM_GET_MP_STATE, &m->mp_state));
    if (m->has_xcrs)
        TRY(PYKVM_RS_XCRS, ioctl(fd, KVM_GET_XCRS, &m->xcrs));
    TRY(PYKVM_RS_XSAVE, ioctl(fd, m->xsave2 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, m->xsave));
    if (m->has_lapic)
        TRY(PYKVM_RS_LAPIC, ioctl(fd, KVM_GET_LAPIC, &m->lapic));
    if (m->msrs->nmsrs) {
        long done = ioctl(fd, KVM_GET_MSRS, m->msrs);
        *step = PYKVM_RS_MSRS | (done > 0 ? (uint32_t)done << 8 : 0);
        if (done < 0)
            return -errno;
        if ((uint32_t)done != m->msrs->nmsrs)
            return -ENXIO;
    }
    if (m->tsc_offset) {
        uint64_t offset = 0;
        TRY(PYKVM_RS_TSC, attribute(fd, KVM_GET_DEVICE_ATTR, &offset));
        m->tsc = pykvm_tsc() + offset;
    } else {
        m->tsc = 0;
        TRY(PYKVM_RS_TSC, one_msr(fd, KVM_GET_MSRS, MSR_TSC, &m->tsc));
    }
    m->monotonic_ns = pykvm_now_ns();
    *step = PYKVM_RS_NONE;
    return 0;
}

/* Registers travel with the next entry where nothing that is set here depends on them. */
static long put_registers(struct pykvm_vcpu *v, const struct pykvm_vcpu_image *m, uint32_t *step)
{
    struct kvm_run *run = v->run;
    const uint32_t both = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
    v->pending = v->answer_size = 0;
    v->entry_valid = 0;
    run->s.regs.regs = m->regs;
    run->s.regs.sregs = m->sregs;
    run->ready_for_interrupt_injection = 0;
    v->sync_valid = both;
    if ((v->sync_supported & both) == both && run->apic_base == m->sregs.apic_base &&
        !m->events.exception.pending) {
        v->sync_dirty = both;
        return 0;
    }
    v->sync_dirty = 0;
    TRY(PYKVM_RS_SREGS, ioctl(v->fd, KVM_SET_SREGS, &m->sregs));
    TRY(PYKVM_RS_REGS, ioctl(v->fd, KVM_SET_REGS, &m->regs));
    run->apic_base = m->sregs.apic_base;
    return 0;
}

long pykvm_image_put(struct pykvm_vcpu *v, const struct pykvm_vcpu_image *m, uint32_t *step)
{
    int fd = v->fd;
    long e = put_registers(v, m, step);
    if (e < 0)
        return e;
    if (m->has_xcrs)
        TRY(PYKVM_RS_XCRS, ioctl(fd, KVM_SET_XCRS, &m->xcrs));
    TRY(PYKVM_RS_XSAVE, ioctl(fd, KVM_SET_XSAVE, m->xsave));
    if (m->tsc_offset) {
        uint64_t offset = m->tsc - pykvm_tsc();
        TRY(PYKVM_RS_TSC, attribute(fd, KVM_SET_DEVICE_ATTR, &offset));
    } else {
        uint64_t tsc = m->tsc;
        TRY(PYKVM_RS_TSC, one_msr(fd, KVM_SET_MSRS, MSR_TSC, &tsc));
    }
    if (m->has_lapic)              /* before the TSC deadline, which is among the MSRs */
        TRY(PYKVM_RS_LAPIC, ioctl(fd, KVM_SET_LAPIC, &m->lapic));
    if (m->msrs->nmsrs) {
        long done = ioctl(fd, KVM_SET_MSRS, m->msrs);
        *step = PYKVM_RS_MSRS | (done > 0 ? (uint32_t)done << 8 : 0);
        if (done < 0)
            return -errno;
        if ((uint32_t)done != m->msrs->nmsrs)
            return -ENXIO;
    }
    if (m->has_lapic)
        TRY(PYKVM_RS_MP_STATE, ioctl(fd, KVM_SET_MP_STATE, &m->mp_state));
    TRY(PYKVM_RS_DEBUGREGS, ioctl(fd, KVM_SET_DEBUGREGS, &m->debugregs));
    TRY(PYKVM_RS_EVENTS, ioctl(fd, KVM_SET_VCPU_EVENTS, &m->events));
    *step = PYKVM_RS_NONE;
    return 0;
}

/* A string instruction may have any number of exits to come. With its count taken away it has at
 * most one, and the registers are replaced anyway. */
long pykvm_abandon(struct pykvm_vcpu *v)
{
    v->sync_dirty = 0;
    for (int turn = 0; v->pending; turn++) {
        if (turn >= STRING_EXITS) {
            struct kvm_regs regs;
            if (ioctl(v->fd, KVM_GET_REGS, &regs) < 0)
                return -errno;
            regs.rcx = 0;
            if (ioctl(v->fd, KVM_SET_REGS, &regs) < 0)
                return -errno;
            if (turn >= 2 * STRING_EXITS)
                return -EBUSY;
        }
        v->sync_dirty = 0;
        long r = pykvm_complete(v);
        if (r < 0)
            return r;
    }
    return 0;
}
