/* The C layer of pykvm. Mechanism only: what to do about an exit is decided by rules that Python
 * sets, or by Python itself. Functions return >= 0, or -errno. Never called with the GIL needed. */
#ifndef PYKVM_NATIVE_H
#define PYKVM_NATIVE_H
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include "kvm_compat.h"
#include "pykvm_blk.h"
#include "pykvm_limits.h"
#include "pykvm_memory.h"
#include "pykvm_net.h"
#include "pykvm_reset.h"
#include "pykvm_round.h"
#include "pykvm_virtq.h"
#include "pykvm_word.h"

struct pykvm_constant { const char *name; long long value; };

/* ioctl(2) with the GIL released (cffi does that): the result, or -errno. */
long pykvm_ioctl(int fd, unsigned long request, void *argument);
long pykvm_ioctl_int(int fd, unsigned long request, unsigned long argument);

/* ---- what pykvm_run() returns: a packed code --------------------------------------------------
 * bits 0..6 kind, bit 7: the coalesced ring has entries to drain first, bits 8..15 access size,
 * bits 16..31 port, bits 32..63 the value written (OUT), errno (EXIT, ERROR) or MP state (IDLE). */
enum pykvm_kind {
    PYKVM_EXIT = 0,         /* look at kvm_run->exit_reason; errno in the high half (0: none) */
    PYKVM_PIO_OUT = 1,      /* one element written to a port */
    PYKVM_PIO_IN = 2,       /* one element read: pass the answer to the next pykvm_run() */
    PYKVM_MMIO_WRITE = 3,   /* vcpu->mmio_gpa, ->mmio_value */
    PYKVM_MMIO_READ = 4,    /* vcpu->mmio_gpa; pass the answer to the next pykvm_run() */
    PYKVM_KICKED = 5,       /* pykvm_kick() was called */
    PYKVM_SIGNAL = 6,       /* another signal arrived: let Python run its handlers */
    PYKVM_TICK = 7,         /* the watch timer fired */
    PYKVM_TIMEOUT = 8,      /* the deadline passed */
    PYKVM_IDLE = 9,         /* the timer found the vCPU halted with interrupts off, or not started */
    PYKVM_TRACE_FULL = 10,  /* a lossless trace ring must be drained before the next entry */
    PYKVM_ERROR = 11,       /* KVM_RUN failed: errno in the high half */
};
#define PYKVM_COALESCED 0x80

struct pykvm_count { uint64_t count, run_cycles, handle_cycles; };
struct pykvm_page_count { uint64_t page; struct pykvm_count c; };

#define PYKVM_REASONS 64
#define PYKVM_MMIO_PAGES 1024  /* distinct MMIO pages counted; later ones share `mmio_other` */

struct pykvm_stats {
    struct pykvm_count reason[PYKVM_REASONS];
    struct pykvm_count *port;          /* 65536 entries, sparse */
    struct pykvm_page_count *page;     /* open-addressed, PYKVM_MMIO_PAGES entries */
    struct pykvm_count mmio_other;
    uint64_t entries, native;          /* KVM_RUN calls; exits that a rule finished */
};

enum { PYKVM_T_WRITE = 1, PYKVM_T_NATIVE = 2, PYKVM_T_VALUE = 4 };

struct pykvm_record {                  /* 64 bytes, one per exit */
    uint64_t tsc;                      /* when KVM_RUN returned */
    uint64_t rip, cs_base;             /* 0 where the host does not sync registers */
    uint64_t address;                  /* port, guest-physical address, MSR, hypercall number */
    uint64_t value;                    /* first element */
    uint32_t run_cycles, handle_cycles;/* in the guest before this exit; until re-entry after it */
    uint32_t count;                    /* elements */
    uint16_t reason;
    uint8_t size, flags;
    uint64_t sequence;
};

struct pykvm_trace {
    struct pykvm_record *ring;
    uint64_t capacity;                 /* power of two */
    volatile uint64_t head, tail;      /* head: records ever written; tail: drained by Python */
    uint32_t lossless;
};

enum pykvm_write_action { PYKVM_W_PYTHON = 0, PYKVM_W_DROP = 1, PYKVM_W_RING = 2 };
enum pykvm_read_action { PYKVM_R_PYTHON = 0, PYKVM_R_CONSTANT = 1 };

struct pykvm_ring {                    /* bytes written by the guest, drained by Python */
    uint8_t *data;
    uint32_t capacity;                 /* power of two */
    uint32_t head, tail;
    pthread_mutex_t lock;              /* several vCPUs may write */
};

struct pykvm_rule {
    uint64_t value;                    /* the constant that reads get */
    uint64_t reads, writes;            /* hits, counted in elements */
    struct pykvm_ring *ring;
    uint8_t on_write, on_read;
};

#define PYKVM_RULES 256
#define PYKVM_MMIO_RULES 64

struct pykvm_mmio_rule { uint64_t first, last; uint32_t rule; };

struct pykvm_rules {                   /* shared by the vCPUs of a VM */
    uint8_t port[65536];               /* index into rule[], 0: none */
    struct pykvm_rule rule[PYKVM_RULES];
    struct pykvm_mmio_rule mmio[PYKVM_MMIO_RULES];
    uint32_t mmio_rules, rules;
};

struct pykvm_vcpu {
    int fd;
    uint32_t run_size;
    struct kvm_run *run;
    struct kvm_coalesced_mmio_ring *coalesced; /* NULL until a zone is registered */
    struct pykvm_rules *rules;
    /* synced registers: kvm_run->s.regs is the one storage, whatever moves it */
    uint32_t sync_supported, sync_want, sync_valid, sync_dirty;
    uint32_t pending;                  /* the last exit is completed by re-entering */
    uint32_t answer_size;              /* bytes that pykvm_run() stores at answer_at */
    void *answer_at;
    uint64_t mmio_gpa, mmio_value;
    struct kvm_regs base_regs;         /* as they were before the first write during `pending` */
    struct kvm_sregs base_sregs;
    struct kvm_regs entry_regs;        /* at the last entry: a triple fault on SVM wipes them */
    uint32_t entry_valid;
    /* kick and timer */
    volatile int tid, kick, tick;
    int timer_tid;
    timer_t timer;
    uint64_t deadline_ns, tick_ns;     /* CLOCK_MONOTONIC; tick_ns 0: no halt check */
    uint32_t fast_ticks;
    /* accounting */
    uint64_t exit_tsc;
    struct pykvm_count *last_reason, *last_place;
    struct pykvm_record *last_record;
    struct pykvm_stats stats;
    struct pykvm_trace trace;
};

struct pykvm_vcpu *pykvm_vcpu_new(int fd, void *run, uint32_t run_size, uint32_t sync_supported);
void pykvm_vcpu_free(struct pykvm_vcpu *v);

uint64_t pykvm_run(struct pykvm_vcpu *v, uint64_t answer);  /* stores the answer, then resumes */
uint64_t pykvm_resume(struct pykvm_vcpu *v);
/* Finishes a pending read/MMIO exit without running the guest: 0, 1 if a further exit followed
 * (kvm_run holds it), or -errno. */
long pykvm_complete(struct pykvm_vcpu *v);
long pykvm_fetch(struct pykvm_vcpu *v, uint32_t what);      /* make KVM_SYNC_X86_* parts valid */
void pykvm_touch(struct pykvm_vcpu *v, uint32_t what);      /* a part is about to be changed */
long pykvm_flush(struct pykvm_vcpu *v);                     /* write changed parts to the kernel */
long pykvm_enter_many(struct pykvm_vcpu *v, uint64_t n);    /* n entries with immediate_exit */

long pykvm_signals_init(int signum);
int pykvm_kick_signal(void);
void pykvm_kick(struct pykvm_vcpu *v);
void pykvm_unkick(struct pykvm_vcpu *v);
/* Arms the calling thread's watch timer: a deadline (ns from now, 0: none) and the halt check. */
long pykvm_watch(struct pykvm_vcpu *v, uint64_t timeout_ns, int halt_check);
void pykvm_unwatch(struct pykvm_vcpu *v);

void pykvm_clock(uint64_t *tsc, uint64_t *ns);
long pykvm_trace_start(struct pykvm_vcpu *v, uint64_t capacity, int lossless);
void pykvm_trace_stop(struct pykvm_vcpu *v);

struct pykvm_rules *pykvm_rules_new(void);
void pykvm_rules_free(struct pykvm_rules *r);
long pykvm_rule_new(struct pykvm_rules *r, int on_write, int on_read, uint64_t value, uint32_t ring);
long pykvm_rule_pio(struct pykvm_rules *r, uint32_t rule, uint32_t port, uint32_t length);
long pykvm_rule_mmio(struct pykvm_rules *r, uint32_t rule, uint64_t gpa, uint64_t length);
void pykvm_rule_clear(struct pykvm_rules *r, uint32_t rule);
long pykvm_ring_drain(struct pykvm_ring *ring, void *out, uint32_t size);

/* Not for Python. */
int pykvm_rule_apply(struct pykvm_vcpu *v);
void pykvm_account_exit(struct pykvm_vcpu *v, uint64_t before, uint64_t after, uint32_t reason);
void pykvm_account_entry(struct pykvm_vcpu *v, uint64_t now);
long pykvm_rearm(struct pykvm_vcpu *v);
uint64_t pykvm_now_ns(void);
int pykvm_thread_id(void);
extern __thread struct pykvm_vcpu *pykvm_current;

static inline uint64_t pykvm_tsc(void) { return __builtin_ia32_rdtsc(); }
#endif
