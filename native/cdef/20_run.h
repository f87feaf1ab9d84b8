
enum pykvm_kind {
    PYKVM_EXIT = 0,         
    PYKVM_PIO_OUT = 1,      
    PYKVM_PIO_IN = 2,       
    PYKVM_MMIO_WRITE = 3,   
    PYKVM_MMIO_READ = 4,    
    PYKVM_KICKED = 5,       
    PYKVM_SIGNAL = 6,       
    PYKVM_TICK = 7,         
    PYKVM_TIMEOUT = 8,      
    PYKVM_IDLE = 9,         
    PYKVM_TRACE_FULL = 10,  
    PYKVM_ERROR = 11,       
};
#define PYKVM_COALESCED 0x80

struct pykvm_count { uint64_t count, run_cycles, handle_cycles; };
struct pykvm_page_count { uint64_t page; struct pykvm_count c; };

#define PYKVM_REASONS 64
#define PYKVM_MMIO_PAGES 1024  

struct pykvm_stats {
    struct pykvm_count reason[PYKVM_REASONS];
    struct pykvm_count *port;          
    struct pykvm_page_count *page;     
    struct pykvm_count mmio_other;
    uint64_t entries, native;          
};

enum { PYKVM_T_WRITE = 1, PYKVM_T_NATIVE = 2, PYKVM_T_VALUE = 4 };

struct pykvm_record {                  
    uint64_t tsc;                      
    uint64_t rip, cs_base;             
    uint64_t address;                  
    uint64_t value;                    
    uint32_t run_cycles, handle_cycles;
    uint32_t count;                    
    uint16_t reason;
    uint8_t size, flags;
    uint64_t sequence;
};

struct pykvm_trace {
    struct pykvm_record *ring;
    uint64_t capacity;                 
    uint64_t head, tail;      
    uint32_t lossless;
};

enum pykvm_write_action { PYKVM_W_PYTHON = 0, PYKVM_W_DROP = 1, PYKVM_W_RING = 2 };
enum pykvm_read_action { PYKVM_R_PYTHON = 0, PYKVM_R_CONSTANT = 1 };

struct pykvm_ring { uint32_t capacity, head, tail; ...; };

struct pykvm_rule {
    uint64_t value;                    
    uint64_t reads, writes;            
    struct pykvm_ring *ring;
    uint8_t on_write, on_read;
};

#define PYKVM_RULES 256
#define PYKVM_MMIO_RULES 64

struct pykvm_mmio_rule { uint64_t first, last; uint32_t rule; };

struct pykvm_rules {                   
    uint8_t port[65536];               
    struct pykvm_rule rule[PYKVM_RULES];
    struct pykvm_mmio_rule mmio[PYKVM_MMIO_RULES];
    uint32_t mmio_rules, rules;
};

struct pykvm_vcpu {
    int fd;
    uint32_t run_size;
    struct kvm_run *run;
    struct kvm_coalesced_mmio_ring *coalesced;
    struct pykvm_rules *rules;
    uint32_t sync_supported, sync_want, sync_valid, sync_dirty;
    uint32_t pending;
    uint32_t answer_size;
    uint64_t mmio_gpa, mmio_value;
    struct kvm_regs entry_regs;
    uint32_t entry_valid;
    int kick, tid; /* tid: the thread inside pykvm_run(), 0 if none */
    struct pykvm_stats stats;
    struct pykvm_trace trace;
    ...;
};

struct pykvm_vcpu *pykvm_vcpu_new(int fd, void *run, uint32_t run_size, uint32_t sync_supported);
void pykvm_vcpu_free(struct pykvm_vcpu *v);

uint64_t pykvm_run(struct pykvm_vcpu *v, uint64_t answer);  
uint64_t pykvm_resume(struct pykvm_vcpu *v);

long pykvm_complete(struct pykvm_vcpu *v);
long pykvm_fetch(struct pykvm_vcpu *v, uint32_t what);      
void pykvm_touch(struct pykvm_vcpu *v, uint32_t what);      
long pykvm_flush(struct pykvm_vcpu *v);                     
long pykvm_enter_many(struct pykvm_vcpu *v, uint64_t n);    

long pykvm_signals_init(int signum);
int pykvm_kick_signal(void);
void pykvm_kick(struct pykvm_vcpu *v);
void pykvm_unkick(struct pykvm_vcpu *v);

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

