#define PYKVM_BLK_READ_ONLY 1
#define PYKVM_BLK_DIRECT 2
#define PYKVM_BLK_UNSAFE 4
#define PYKVM_BLK_DEVICE 8
#define PYKVM_BLK_THREADS 16
#define PYKVM_BLK_GUARDED 32
enum { PYKVM_BLK_STOPPED = 0, PYKVM_BLK_EVENT = 1 };
enum { PYKVM_BLK_BROKEN = 1, PYKVM_BLK_FAILED = 2 };
#define PYKVM_BLK_STATS 5
struct pykvm_blk_config {
    int fd, plain_fd;
    uint32_t flags;
    uint32_t align, memory_align;
    uint64_t offset, size, bytes;
    uint32_t discard_sectors, discard_segments, zero_sectors, request_bytes;
    uint32_t queues, requests, reports;
    uint8_t serial[20];
    struct pykvm_limit *limit;
    struct pykvm_stat *stats;
};
struct pykvm_blk_event { uint32_t kind, queue, request; uint64_t offset, length; int error;
                         uint32_t rule; uint64_t detail[3]; };
struct pykvm_blk;
struct pykvm_blk *pykvm_blk_new(const struct pykvm_blk_config *config);
void pykvm_blk_free(struct pykvm_blk *b);
void pykvm_blk_set_queue(struct pykvm_blk *b, uint32_t index, struct pykvm_vq *vq, int kick,
                         const struct pykvm_vq_signal *signal);
void pykvm_blk_set_size(struct pykvm_blk *b, uint64_t size, uint64_t bytes);
void pykvm_blk_set_write_through(struct pykvm_blk *b, int on);
int pykvm_blk_run(struct pykvm_blk *b);
void pykvm_blk_take_event(struct pykvm_blk *b, struct pykvm_blk_event *event);
void pykvm_blk_mend(struct pykvm_blk *b);
void pykvm_blk_pause(struct pykvm_blk *b);
void pykvm_blk_resume(struct pykvm_blk *b);
void pykvm_blk_stop(struct pykvm_blk *b);
void pykvm_blk_wake(struct pykvm_blk *b);
int pykvm_blk_uses_uring(struct pykvm_blk *b);
uint32_t pykvm_blk_in_flight(struct pykvm_blk *b);
int pykvm_blk_looks_foreign(const uint8_t *sector, int last);
