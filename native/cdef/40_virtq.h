struct iovec { void *iov_base; size_t iov_len; };
struct pykvm_map_entry { uint64_t gpa, size; uint8_t *host, *marks; };
struct pykvm_map { uint32_t count; struct pykvm_map_entry *entry; };
struct pykvm_vq_used { uint32_t written; uint16_t id, count, position, done; };
struct pykvm_vq {
    const struct pykvm_map *map;
    uint64_t desc, driver, device;
    uint8_t *desc_host, *driver_host, *device_host;
    uint16_t index, size;
    uint32_t flags;
    uint16_t next_avail, next_used;
    uint8_t avail_wrap, used_wrap;
    uint8_t no_kicks;
    uint32_t unasked;
    struct pykvm_vq_used *held;
    uint16_t popped, oldest;
    uint32_t error;
    uint64_t detail[3];
    ...;
};
struct pykvm_chain {
    uint16_t id, count;
    uint32_t readable, writable;
    uint64_t readable_bytes, writable_bytes;
    struct iovec *iov;
    uint64_t *gpa;
    uint16_t position;
    ...;
};
struct pykvm_vq_signal { uint32_t *isr; uint32_t bits; int fd; };
#define PYKVM_VQ_BUFFERS 1024
int pykvm_vq_start(struct pykvm_vq *q);
int pykvm_vq_pop(struct pykvm_vq *q, struct pykvm_chain *c);
int pykvm_vq_push(struct pykvm_vq *q, const struct pykvm_chain *c, uint32_t written);
int pykvm_vq_pop_batch(struct pykvm_vq *q, struct pykvm_chain *c, uint32_t limit,
                       struct iovec *iov, uint64_t *gpa, uint32_t room, int *more);
int pykvm_vq_push_batch(struct pykvm_vq *q, const struct pykvm_vq_used *used, uint32_t count);
int pykvm_vq_should_notify(struct pykvm_vq *q);
int pykvm_vq_want_kicks(struct pykvm_vq *q, int on);
void pykvm_vq_signal(const struct pykvm_vq_signal *s);
