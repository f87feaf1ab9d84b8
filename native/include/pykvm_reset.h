/* Whole-machine snapshots: guest memory and vCPUs taken and put back, in one call each and without
 * allocating. Everything here is for vCPUs and devices that stand still. */
#ifndef PYKVM_RESET_H
#define PYKVM_RESET_H
#include <stdint.h>
#include "kvm_compat.h"

#define PYKVM_PAGE 4096u

struct pykvm_vcpu;

/* One region of guest memory. `bitmap` has a bit for each page, in whole 64-bit words, and belongs
 * to the calls here; `marks` has a byte for each page, set by whoever writes from this process. */
struct pykvm_ram_part {
    uint32_t slot;
    uint32_t logged;               /* KVM keeps a dirty log of the slot */
    uint64_t pages;
    uint8_t *host, *marks;         /* marks may be NULL */
    uint64_t *bitmap;
};

struct pykvm_ram {
    int vm_fd;
    uint32_t manual;               /* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is on */
    uint32_t count;
    uint64_t keep;                 /* so many written pages of a part may stay writable: they count
                                      as changed each time, and cost the guest no fault */
    struct pykvm_ram_part *part;
    uint64_t pages;                /* that the last call found changed */
    uint64_t log_ns, copy_ns;      /* of the last pykvm_ram_put() */
};

/* Contents of memory: for each part, for each page where its bytes are; NULL is a page of zeros. */
typedef const uint8_t *const *pykvm_pages;

/* Pages written since the last call, into the bitmaps; protects them again. Their number, or
 * -errno. */
long pykvm_ram_collect(struct pykvm_ram *r);
/* As if the pages [first, first + count) of a part had been written. */
void pykvm_ram_touch(struct pykvm_ram *r, uint32_t part, uint64_t first, uint64_t count);
/* Memory becomes `target`. It was `base` but for what was written since (collected here). The
 * number of pages put back, or -errno. */
long pykvm_ram_put(struct pykvm_ram *r, const pykvm_pages *target, const pykvm_pages *base);
/* After collect: `tables`, which are those of the contents before, become those of the contents
 * now; pages that changed are copied to `room` (as many as were collected). Bytes of room used. */
uint64_t pykvm_ram_take(struct pykvm_ram *r, const uint8_t ***tables, uint8_t *room);
/* Compares all of memory: 0, or 1 with the place of the first byte that differs. */
int pykvm_ram_compare(const struct pykvm_ram *r, const pykvm_pages *target, uint32_t *part,
                      uint64_t *offset);
/* Whether a page is zeros: 1 or 0. */
int pykvm_page_is_zero(const uint8_t *page);

/* All of a vCPU. The variable parts are the owner's, with room for what KVM gives. */
struct pykvm_vcpu_image {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    struct kvm_mp_state mp_state;
    struct kvm_lapic_state lapic;
    uint32_t has_lapic, has_xcrs;
    uint32_t tsc_offset;           /* the TSC goes by KVM_VCPU_TSC_OFFSET, else by its MSR */
    uint32_t xsave2;               /* KVM_GET_XSAVE2 */
    uint64_t tsc;                  /* the guest's */
    uint64_t monotonic_ns;         /* when the TSC was read */
    struct kvm_msrs *msrs;         /* without the TSC; what is put back */
    uint8_t *xsave;
};

enum pykvm_reset_step {            /* which ioctl failed, for messages */
    PYKVM_RS_NONE, PYKVM_RS_REGS, PYKVM_RS_SREGS, PYKVM_RS_XCRS, PYKVM_RS_XSAVE, PYKVM_RS_LAPIC,
    PYKVM_RS_MSRS, PYKVM_RS_TSC, PYKVM_RS_MP_STATE, PYKVM_RS_DEBUGREGS, PYKVM_RS_EVENTS,
    PYKVM_RS_COMPLETE,
};

/* 0, or -errno with `*step`. For MSRS a short count is -ENXIO and `*step` says which, above bit 8. */
long pykvm_image_take(struct pykvm_vcpu *v, struct pykvm_vcpu_image *m, uint32_t *step);
long pykvm_image_put(struct pykvm_vcpu *v, const struct pykvm_vcpu_image *m, uint32_t *step);
/* Ends a pending exit for good, whatever the instruction had in mind: 0 or -errno. */
long pykvm_abandon(struct pykvm_vcpu *v);
#endif
