/* virtio_pci.c: the modern interface on PCI (VIRTIO 1.2, 4.1).

   A function of vendor 1af4. Vendor capabilities in its configuration space say in which BAR, and
   where there, its structures are. Configuration space is read by mechanism 1: the address goes to
   port 0xcf8, the data come from 0xcfc (PCI Local Bus Specification 3.0, 3.2.2.3.2). */
#include "virtio.h"

enum { /* the common configuration structure (4.1.4.3) */
    DEVICE_FEATURE_SELECT = 0x00, DEVICE_FEATURE = 0x04, DRIVER_FEATURE_SELECT = 0x08,
    DRIVER_FEATURE = 0x0c, MSIX_CONFIG = 0x10, STATUS = 0x14, QUEUE_SELECT = 0x16,
    QUEUE_SIZE = 0x18, QUEUE_MSIX_VECTOR = 0x1a, QUEUE_ENABLE = 0x1c, QUEUE_NOTIFY_OFF = 0x1e,
    QUEUE_DESC = 0x20, QUEUE_DRIVER = 0x28, QUEUE_DEVICE = 0x30,
};
enum { COMMON = 1, NOTIFY = 2, ISR = 3, DEVICE = 4 }; /* types of structure (4.1.4) */
enum { CAP_VENDOR = 0x09, CAP_MSIX = 0x11, MSIX_ENABLE = 1u << 31 };
enum { VENDOR = 0x1af4, COMMAND = 0x04, COMMAND_MEMORY_AND_MASTER = 6, LINE = 0x3c };

static uint32_t config_address(unsigned slot, unsigned offset)
{
    return 1u << 31 | slot << 11 | (offset & 0xfc);
}

static uint32_t config_read(unsigned slot, unsigned offset)
{
    outl(0xcf8, config_address(slot, offset));
    return inl(0xcfc);
}

static void config_write(unsigned slot, unsigned offset, uint32_t value)
{
    outl(0xcf8, config_address(slot, offset));
    outl(0xcfc, value);
}

int pci_present(void) { return config_read(0, 0) != 0xffffffff; }

/* Where BAR number `bar` is; firmware, or the VMM in its place, has put it somewhere. */
static volatile uint8_t *bar_address(unsigned slot, unsigned bar)
{
    uint32_t low = config_read(slot, 0x10 + 4 * bar);
    uint64_t address = low & ~15u;
    if ((low & 6) == 4) /* 64 bits wide */
        address |= (uint64_t)config_read(slot, 0x14 + 4 * bar) << 32;
    return (void *)address;
}

/* The place of the first capability `kind`, or of the next one after `at`; 0: no more. */
static unsigned capability(unsigned slot, unsigned kind, unsigned at)
{
    at = at ? config_read(slot, at) >> 8 & 0xfc : config_read(slot, 0x34) & 0xfc;
    while (at && (config_read(slot, at) & 0xff) != kind)
        at = config_read(slot, at) >> 8 & 0xfc;
    return at;
}

static uint8_t status(struct virtio *device) { return get8(device->common + STATUS); }

static void set_status(struct virtio *device, uint8_t value) { put8(device->common + STATUS, value); }

static uint64_t features(struct virtio *device)
{
    put32(device->common + DEVICE_FEATURE_SELECT, 1);
    uint64_t high = get32(device->common + DEVICE_FEATURE);
    put32(device->common + DEVICE_FEATURE_SELECT, 0);
    return high << 32 | get32(device->common + DEVICE_FEATURE);
}

static void set_features(struct virtio *device, uint64_t value)
{
    put32(device->common + DRIVER_FEATURE_SELECT, 1);
    put32(device->common + DRIVER_FEATURE, value >> 32);
    put32(device->common + DRIVER_FEATURE_SELECT, 0);
    put32(device->common + DRIVER_FEATURE, value);
}

static unsigned queue_size(struct virtio *device, unsigned index)
{
    put16(device->common + QUEUE_SELECT, index);
    return get16(device->common + QUEUE_SIZE);
}

static void put_address(struct virtio *device, unsigned at, volatile void *address)
{
    put32(device->common + at, (uintptr_t)address);
    put32(device->common + at + 4, (uintptr_t)address >> 32);
}

static void queue_start(struct virtio *device, struct queue *queue)
{
    put16(device->common + QUEUE_SELECT, queue->index);
    put16(device->common + QUEUE_SIZE, queue->size);
    put_address(device, QUEUE_DESC, queue->table);
    put_address(device, QUEUE_DRIVER, queue->available);
    put_address(device, QUEUE_DEVICE, queue->used);
    if (device->interrupts)
        put16(device->common + QUEUE_MSIX_VECTOR, 0); /* entry 0 of the MSI-X table */
    uint16_t offset = get16(device->common + QUEUE_NOTIFY_OFF);
    queue->doorbell = device->notify + offset * device->notify_multiplier;
    put16(device->common + QUEUE_ENABLE, 1);
}

/* MSI-X: an interrupt is a write of the vector to the local APIC's address; the table in a BAR
   says which (PCI 3.0, 6.8.2). Without it the pin, whose line is in the configuration space. */
static void interrupts(struct virtio *device, unsigned vector)
{
    unsigned at = capability(device->slot, CAP_MSIX, 0);
    if (!at) {
        if (device->gsi != NO_GSI)
            ioapic_route(device->gsi, vector, IOAPIC_LEVEL);
        return;
    }
    uint32_t table = config_read(device->slot, at + 4);
    volatile uint8_t *entry = bar_address(device->slot, table & 7) + (table & ~7u);
    put32(entry, 0xfee00000);
    put32(entry + 4, 0);
    put32(entry + 8, vector);
    put32(entry + 12, 0); /* not masked */
    config_write(device->slot, at, config_read(device->slot, at) | MSIX_ENABLE);
    put16(device->common + MSIX_CONFIG, 0);
    device->isr = 0;
}

/* Reading the register takes the pin back (4.1.4.5); an MSI needs nothing. */
static void acknowledge(struct virtio *device)
{
    if (device->isr)
        get8(device->isr);
}

static const struct transport pci = {
    "virtio-pci", status,      set_status, features,   set_features,
    queue_size,   queue_start, interrupts, acknowledge,
};

/* 1: the structures are all there. */
static int map(struct virtio *device)
{
    unsigned slot = device->slot;
    for (unsigned at = 0; (at = capability(slot, CAP_VENDOR, at));) {
        unsigned kind = config_read(slot, at) >> 24, bar = config_read(slot, at + 4) & 0xff;
        if (kind < COMMON || kind > DEVICE || bar > 5)
            continue; /* what we do not know is left alone */
        volatile uint8_t *place = bar_address(slot, bar) + config_read(slot, at + 8);
        if (kind == COMMON)
            device->common = place;
        if (kind == DEVICE)
            device->config = place;
        if (kind == ISR)
            device->isr = place;
        if (kind == NOTIFY) {
            device->notify = place;
            device->notify_multiplier = config_read(slot, at + 16);
        }
    }
    return device->common && device->notify && device->isr;
}

int virtio_pci_find(struct virtio *device, unsigned id, unsigned *nth)
{
    for (unsigned slot = 0; slot < 32 && pci_present(); slot++) {
        uint32_t name = config_read(slot, 0);
        unsigned model = name >> 16;
        if ((name & 0xffff) != VENDOR || model < 0x1000 || model > 0x107f)
            continue;
        /* Modern functions are 1040 + type; transitional ones say it in the subsystem ID. */
        if ((model >= 0x1040 ? model - 0x1040 : config_read(slot, 0x2c) >> 16) != id)
            continue;
        if ((*nth)--)
            continue;
        unsigned line = config_read(slot, LINE) & 0xff;
        *device = (struct virtio){.transport = &pci, .id = id, .slot = slot, .gsi = NO_GSI};
        if (line > 0 && line < 24)
            device->gsi = line;
        config_write(slot, COMMAND, config_read(slot, COMMAND) | COMMAND_MEMORY_AND_MASTER);
        return map(device);
    }
    return 0;
}
