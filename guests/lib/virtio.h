/* The driver side of virtio, for tiny guests (VIRTIO 1.2; numbers in comments are its sections).

   virtio_mmio.c and virtio_pci.c find a device and know its registers. virtio.c does what is the
   same on both: the handshake and the split virtqueue. virtio_blk.c, virtio_net.c and virtio_rng.c
   speak to one type of device each. docs/driver-side.md reads it aloud.

   Memory is mapped one to one, so a pointer is a guest-physical address. All of it works in ring 3
   too, apart from virtio_find() on PCI (ports) and interrupts. */
#pragma once
#include "runtime.h"

enum virtio_id { VIRTIO_NET = 1, VIRTIO_BLK = 2, VIRTIO_CONSOLE = 3, VIRTIO_RNG = 4 };

enum { /* device status (2.1) */
    STATUS_ACKNOWLEDGE = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4, STATUS_FEATURES_OK = 8,
    STATUS_NEEDS_RESET = 64, STATUS_FAILED = 128,
};

/* features of every device (6) */
#define F_EVENT_IDX (1ull << 29)
#define F_VERSION_1 (1ull << 32)

enum { VIRTIO_MMIO_PLACES = 0xfeb00000, VIRTIO_MMIO_STRIDE = 0x200, NO_GSI = -1 };

/* A device and the registers that its transport has for it. */
struct virtio {
    const struct transport *transport;
    unsigned id;                /* enum virtio_id */
    uint64_t features;          /* what both sides agreed on */
    volatile uint8_t *common;   /* MMIO: all registers. PCI: the common configuration structure */
    volatile uint8_t *config;   /* the structure of this device type */
    volatile uint8_t *notify;   /* PCI: the doorbells */
    volatile uint8_t *isr;      /* PCI: the interrupt status, without MSI-X */
    uint32_t notify_multiplier; /* PCI: bytes between doorbells */
    unsigned slot;              /* PCI: device number on bus 0 */
    int gsi;                    /* its interrupt line, or NO_GSI */
    int interrupts;             /* virtio_interrupts() was called */
};

struct queue;

/* What MMIO and PCI do differently. */
struct transport {
    const char *name;
    uint8_t (*status)(struct virtio *);
    void (*set_status)(struct virtio *, uint8_t);
    uint64_t (*features)(struct virtio *);
    void (*set_features)(struct virtio *, uint64_t);
    unsigned (*queue_size)(struct virtio *, unsigned index); /* the most it may have; 0: no queue */
    void (*queue_start)(struct virtio *, struct queue *);
    void (*interrupts)(struct virtio *, unsigned vector);
    void (*acknowledge)(struct virtio *);
};

/* The split virtqueue (2.7). The descriptor table and the available ring are the driver's, the
   used ring is the device's. */
struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct used { uint32_t id, length; };
enum { QUEUE_MOST = 256 };

struct queue {
    struct virtio *device;
    uint16_t index, size;
    uint16_t free, free_count; /* unused descriptors, chained by `next` */
    uint16_t next_available;   /* what the device will see as available->index */
    uint16_t next_used;        /* the first used entry that was not looked at */
    uint16_t kicked;           /* next_available at the last kick */
    volatile struct descriptor *table;
    volatile struct { uint16_t flags, index, ring[QUEUE_MOST + 1]; } *available;
    volatile struct { uint16_t flags, index; struct used ring[QUEUE_MOST]; } *used;
    volatile void *doorbell;
    uint16_t length[QUEUE_MOST]; /* descriptors of the chain that begins here */
    void *token[QUEUE_MOST];     /* what the caller wants back with it */
    uint64_t kicks;
};

/* A piece of a request. */
struct piece { volatile void *data; uint32_t bytes; int device_writes; };

/* devices (virtio.c) */
int virtio_find(struct virtio *device, unsigned id, unsigned nth);
int virtio_start(struct virtio *device, uint64_t wanted);
int virtio_queue(struct virtio *device, struct queue *queue, unsigned index, unsigned most);
int virtio_ready(struct virtio *device);
int virtio_broken(struct virtio *device);
void *pages(unsigned n);

/* queues (virtio.c) */
int queue_add(struct queue *queue, const struct piece *pieces, unsigned n, void *token);
void queue_kick(struct queue *queue);
void *queue_take(struct queue *queue, uint32_t *written);

/* waiting (virtio_wait.c) */
void virtio_interrupts(struct virtio *device, unsigned n);
void *queue_wait(struct queue *queue, uint32_t *written);

/* transports (virtio_mmio.c, virtio_pci.c): the nth device of this type, 1 if there is one */
int virtio_mmio_find(struct virtio *device, unsigned id, unsigned *nth);
int virtio_pci_find(struct virtio *device, unsigned id, unsigned *nth);
int pci_present(void);

/* block (virtio_blk.c) */
enum blk_type { BLK_READ = 0, BLK_WRITE = 1, BLK_FLUSH = 4, BLK_ID = 8 };
enum { SECTOR = 512, BLK_OK = 0 };

struct blk_request { /* lives until the device has answered it */
    struct { uint32_t type, reserved; uint64_t sector; } header;
    volatile uint8_t status;
};

struct blk {
    struct virtio virtio;
    struct queue queue;
    uint64_t sectors;
};

int blk_open(struct blk *disk, unsigned nth, unsigned queue_size);
int blk_submit(struct blk *disk, struct blk_request *request, enum blk_type type, uint64_t sector,
               void *data, uint32_t bytes);
int blk_do(struct blk *disk, enum blk_type type, uint64_t sector, void *data, uint32_t bytes);

/* network (virtio_net.c) */
enum { NET_FRAME = 2036 };

struct net_buffer { /* what is in a queue: virtio's header, then the frame */
    struct {
        uint8_t flags, gso_type;
        uint16_t header_length, gso_size, checksum_start, checksum_offset, buffers;
    } header;
    uint8_t frame[NET_FRAME]; /* from the destination's MAC address on, without the checksum */
};

struct net {
    struct virtio virtio;
    struct queue receive, transmit;
    uint8_t mac[6];
};

int net_open(struct net *net, unsigned nth, unsigned queue_size);
int net_post(struct net *net, struct net_buffer *buffer);
struct net_buffer *net_receive(struct net *net, unsigned *bytes);
int net_send(struct net *net, struct net_buffer *buffer, unsigned bytes);

/* random numbers (virtio_rng.c) */
int rng_read(struct virtio *device, struct queue *queue, void *to, uint32_t bytes);

/* small helpers: volatile accesses of one width */
static inline uint8_t get8(volatile uint8_t *at) { return *at; }
static inline uint16_t get16(volatile uint8_t *at) { return *(volatile uint16_t *)at; }
static inline uint32_t get32(volatile uint8_t *at) { return *(volatile uint32_t *)at; }
static inline void put8(volatile uint8_t *at, uint8_t value) { *at = value; }
static inline void put16(volatile uint8_t *at, uint16_t v) { *(volatile uint16_t *)at = v; }
static inline void put32(volatile uint8_t *at, uint32_t v) { *(volatile uint32_t *)at = v; }

/* x86 keeps stores in order and loads in order, so the compiler is all that has to be told; only
   a store followed by a load may change places on the CPU. */
static inline void barrier(void) { asm volatile("" : : : "memory"); }
static inline void full_barrier(void) { asm volatile("lock or dword ptr [rsp], 0" : : : "memory"); }
