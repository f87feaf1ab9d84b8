struct pykvm_ram_part {
    uint32_t slot, logged;
    uint64_t pages;
    uint8_t *host, *marks;
    uint64_t *bitmap;
};
struct pykvm_ram {
    int vm_fd;
    uint32_t manual, count;
    uint64_t keep;
    struct pykvm_ram_part *part;
    uint64_t pages, log_ns, copy_ns;
};
typedef const uint8_t *const *pykvm_pages;
long pykvm_ram_collect(struct pykvm_ram *r);
void pykvm_ram_touch(struct pykvm_ram *r, uint32_t part, uint64_t first, uint64_t count);
long pykvm_ram_put(struct pykvm_ram *r, const pykvm_pages *target, const pykvm_pages *base);
uint64_t pykvm_ram_take(struct pykvm_ram *r, const uint8_t ***tables, uint8_t *room);
int pykvm_ram_compare(const struct pykvm_ram *r, const pykvm_pages *target, uint32_t *part,
                      uint64_t *offset);
int pykvm_page_is_zero(const uint8_t *page);

struct pykvm_vcpu_image {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    struct kvm_mp_state mp_state;
    struct kvm_lapic_state lapic;
    uint32_t has_lapic, has_xcrs, tsc_offset, xsave2;
    uint64_t tsc, monotonic_ns;
    struct kvm_msrs *msrs;
    uint8_t *xsave;
};
enum pykvm_reset_step {
    PYKVM_RS_NONE, PYKVM_RS_REGS, PYKVM_RS_SREGS, PYKVM_RS_XCRS, PYKVM_RS_XSAVE, PYKVM_RS_LAPIC,
    PYKVM_RS_MSRS, PYKVM_RS_TSC, PYKVM_RS_MP_STATE, PYKVM_RS_DEBUGREGS, PYKVM_RS_EVENTS,
    PYKVM_RS_COMPLETE,
};
long pykvm_image_take(struct pykvm_vcpu *v, struct pykvm_vcpu_image *m, uint32_t *step);
long pykvm_image_put(struct pykvm_vcpu *v, const struct pykvm_vcpu_image *m, uint32_t *step);
long pykvm_abandon(struct pykvm_vcpu *v);
