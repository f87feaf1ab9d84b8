/* virtio_mmio.c: a device is 512 bytes of registers, version 2 (VIRTIO 1.2, 4.2).

   Nothing says where they are. The VMM does, on the kernel's command line in Linux's syntax,
   virtio_mmio.device=512@0xfeb00000:5 (size, address, GSI); a guest without a command line looks
   where the microvm board puts them. */
#include "options.h"
#include "virtio.h"

enum {
    MAGIC = 0x000, VERSION = 0x004, DEVICE_ID = 0x008, DEVICE_FEATURES = 0x010,
    DEVICE_FEATURES_SEL = 0x014, DRIVER_FEATURES = 0x020, DRIVER_FEATURES_SEL = 0x024,
    QUEUE_SEL = 0x030, QUEUE_NUM_MAX = 0x034, QUEUE_NUM = 0x038, QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050, INTERRUPT_STATUS = 0x060, INTERRUPT_ACK = 0x064, STATUS = 0x070,
    QUEUE_DESC = 0x080, QUEUE_DRIVER = 0x090, QUEUE_DEVICE = 0x0a0, CONFIG = 0x100,
    VIRT = 0x74726976, /* "virt" */
};

static uint8_t status(struct virtio *device) { return get32(device->common + STATUS); }

static void set_status(struct virtio *device, uint8_t value)
{
    put32(device->common + STATUS, value);
}

static uint64_t features(struct virtio *device)
{
    put32(device->common + DEVICE_FEATURES_SEL, 1);
    uint64_t high = get32(device->common + DEVICE_FEATURES);
    put32(device->common + DEVICE_FEATURES_SEL, 0);
    return high << 32 | get32(device->common + DEVICE_FEATURES);
}

static void set_features(struct virtio *device, uint64_t value)
{
    put32(device->common + DRIVER_FEATURES_SEL, 1);
    put32(device->common + DRIVER_FEATURES, value >> 32);
    put32(device->common + DRIVER_FEATURES_SEL, 0);
    put32(device->common + DRIVER_FEATURES, value);
}

static unsigned queue_size(struct virtio *device, unsigned index)
{
    put32(device->common + QUEUE_SEL, index);
    return get32(device->common + QUEUE_NUM_MAX);
}

static void put_address(struct virtio *device, unsigned at, volatile void *address)
{
    put32(device->common + at, (uintptr_t)address);
    put32(device->common + at + 4, (uintptr_t)address >> 32);
}

static void queue_start(struct virtio *device, struct queue *queue)
{
    put32(device->common + QUEUE_SEL, queue->index);
    put32(device->common + QUEUE_NUM, queue->size);
    put_address(device, QUEUE_DESC, queue->table);
    put_address(device, QUEUE_DRIVER, queue->available);
    put_address(device, QUEUE_DEVICE, queue->used);
    put32(device->common + QUEUE_READY, 1);
    queue->doorbell = device->common + QUEUE_NOTIFY;
}

static void interrupts(struct virtio *device, unsigned vector)
{
    if (device->gsi != NO_GSI)
        ioapic_route(device->gsi, vector, IOAPIC_LEVEL);
}

static void acknowledge(struct virtio *device)
{
    put32(device->common + INTERRUPT_ACK, get32(device->common + INTERRUPT_STATUS));
}

static const struct transport mmio = {
    "virtio-mmio", status,      set_status, features,   set_features,
    queue_size,    queue_start, interrupts, acknowledge,
};

/* 1: a device of the type is at `address`, and it is the one that we count down to. */
static int look(struct virtio *device, unsigned id, unsigned *nth, uint64_t address, int gsi)
{
    volatile uint8_t *at = (void *)address;
    if (get32(at + MAGIC) != VIRT || get32(at + VERSION) != 2 || get32(at + DEVICE_ID) != id)
        return 0;
    if ((*nth)--)
        return 0;
    *device = (struct virtio){
        .transport = &mmio, .id = id, .common = at, .config = at + CONFIG, .gsi = gsi,
    };
    return 1;
}

int virtio_mmio_find(struct virtio *device, unsigned id, unsigned *nth)
{
    static const uint8_t gsis[] = {5, 6, 7, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23};
    int told = 0;
    for (const char *at = 0; (at = option_text("virtio_mmio.device", at)); told = 1) {
        number_at(&at); /* the size */
        uint64_t address = *at == '@' ? (at++, number_at(&at)) : 0;
        int gsi = *at == ':' ? (at++, (int)number_at(&at)) : NO_GSI;
        if (address && look(device, id, nth, address, gsi))
            return 1;
    }
    if (told || pci_present())
        return 0;
    for (unsigned i = 0; i < 32; i++) {
        uint64_t address = VIRTIO_MMIO_PLACES + i * VIRTIO_MMIO_STRIDE;
        if (get32((volatile uint8_t *)address + MAGIC) != VIRT)
            return 0; /* places without a device show the magic number too, with device ID 0 */
        if (look(device, id, nth, address, i < sizeof gsis ? gsis[i] : NO_GSI))
            return 1;
    }
    return 0;
}
