struct pykvm_bucket { uint64_t rate, burst; uint64_t full_at; };
struct pykvm_limit { uint32_t lock; struct pykvm_bucket ops, bytes; uint64_t held; };
#define PYKVM_STAT_SLOTS 40
struct pykvm_stat { uint64_t requests, bytes, errors; uint64_t total_ns; uint64_t latency[40]; };
uint64_t pykvm_now(void);
void pykvm_limit_set(struct pykvm_limit *l, uint64_t ops, uint64_t bytes, uint64_t burst_ops,
                     uint64_t burst_bytes);
uint64_t pykvm_limit_take(struct pykvm_limit *l, uint64_t now, uint64_t bytes);
void pykvm_limit_charge(struct pykvm_limit *l, uint64_t now, uint64_t bytes);
void pykvm_stat_add(struct pykvm_stat *s, uint64_t bytes, uint64_t ns, int failed);
