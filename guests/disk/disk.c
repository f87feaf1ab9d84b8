/* disk: a virtio block driver in a page of C, without interrupts.

   It lists the PCI functions, looks for a virtio disk there (1af4:1042) and then at the first
   virtio-mmio place of the microvm board, reads sector 0, writes its complement to sector 1, reads
   that back and compares. VIRTIO 1.2: the transports are sections 4.1 and 4.2, the split queue is
   2.7, the block device 5.2. */
#include "runtime.h"

enum {
    VIRTIO_MMIO = 0xfeb00000, ECAM = 0xe0000000,
    QUEUE_SIZE = 8, SECTOR = 512,
    NEXT = 1, WRITE = 2,
    READ_SECTOR = 0, WRITE_SECTOR = 1, FLUSH = 4,
};

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };

static struct {
    struct descriptor table[QUEUE_SIZE];
    struct { uint16_t flags, index, ring[QUEUE_SIZE]; } available;
    struct { uint16_t flags, index; struct { uint32_t id, length; } ring[QUEUE_SIZE]; } used
        __attribute__((aligned(4)));
} volatile queue __attribute__((aligned(4096)));

static struct { uint32_t type, reserved; uint64_t sector; } volatile header;
static volatile uint8_t status;
static volatile uint16_t *notify; /* where a kick goes on PCI; null on MMIO */

uint32_t ecam; /* 1: configuration space by memory */
uint8_t sector[SECTOR];
static uint8_t other[SECTOR];

static uint32_t config_read(unsigned slot, unsigned function, unsigned offset)
{
    if (ecam)
        return *(volatile uint32_t *)(uint64_t)(ECAM + (slot << 15 | function << 12 | offset));
    outl(0xcf8, 1u << 31 | slot << 11 | function << 8 | offset);
    return inl(0xcfc);
}

static void write32(uint64_t address, uint32_t value) { *(volatile uint32_t *)address = value; }
static void write16(uint64_t address, uint16_t value) { *(volatile uint16_t *)address = value; }
static void write8(uint64_t address, uint8_t value) { *(volatile uint8_t *)address = value; }
static uint32_t read32(uint64_t address) { return *(volatile uint32_t *)address; }

/* The slot of the disk, or -1. */
static int list_pci(void)
{
    int found = -1;
    for (unsigned slot = 0; slot < 32; slot++) {
        unsigned functions = config_read(slot, 0, 0x0c) >> 16 & 0x80 ? 8 : 1;
        for (unsigned function = 0; function < functions; function++) {
            uint32_t id = config_read(slot, function, 0);
            if (id == 0xffffffff)
                break;
            print("pci 00:%x.%u %x:%x class 0x%x\n", slot, function, id & 0xffff, id >> 16,
                  config_read(slot, function, 8) >> 8);
            if (id == 0x10421af4)
                found = slot;
        }
    }
    return found;
}

static int start_pci(unsigned slot)
{
    uint64_t places[6] = {0};
    uint32_t multiplier = 0;
    for (unsigned at = config_read(slot, 0, 0x34) & 0xfc; at;) {
        uint32_t head = config_read(slot, 0, at);
        unsigned kind = head >> 24;
        if ((head & 0xff) == 9 && kind >= 1 && kind <= 4) {
            unsigned bar = 0x10 + 4 * (config_read(slot, 0, at + 4) & 7);
            places[kind] = (config_read(slot, 0, bar) & ~15u) +
                           ((uint64_t)config_read(slot, 0, bar + 4) << 32) +
                           config_read(slot, 0, at + 8);
            if (kind == 2)
                multiplier = config_read(slot, 0, at + 16);
        }
        at = head >> 8 & 0xfc;
    }
    uint64_t common = places[1];
    write8(common + 0x14, 0);
    write8(common + 0x14, 3); /* acknowledge, driver */
    write32(common + 8, 1);
    write32(common + 12, 1); /* VERSION_1 */
    write8(common + 0x14, 11);
    if ((read32(common + 0x14) & 0xff) != 11)
        return 0;
    write16(common + 0x16, 0);
    write16(common + 0x18, QUEUE_SIZE);
    write32(common + 0x20, (uint64_t)queue.table);
    write32(common + 0x24, 0);
    write32(common + 0x28, (uint64_t)&queue.available);
    write32(common + 0x2c, 0);
    write32(common + 0x30, (uint64_t)&queue.used);
    write32(common + 0x34, 0);
    write16(common + 0x1c, 1);
    write8(common + 0x14, 15);
    notify = (void *)(places[2] + multiplier * (read32(common + 0x1c) >> 16));
    print("virtio-pci: %lu sectors\n", (uint64_t)read32(places[4]));
    return (read32(common + 0x14) & 0xff) == 15;
}

static int start_mmio(void)
{
    uint64_t base = VIRTIO_MMIO;
    if (read32(base) != 0x74726976 || read32(base + 4) != 2 || read32(base + 8) != 2)
        return -1;
    write32(base + 0x70, 0);
    write32(base + 0x70, 3);
    write32(base + 0x24, 1);
    write32(base + 0x20, 1);
    write32(base + 0x70, 11);
    if (read32(base + 0x70) != 11)
        return 0;
    write32(base + 0x30, 0);
    write32(base + 0x38, QUEUE_SIZE);
    write32(base + 0x80, (uint64_t)queue.table);
    write32(base + 0x90, (uint64_t)&queue.available);
    write32(base + 0xa0, (uint64_t)&queue.used);
    write32(base + 0x44, 1);
    write32(base + 0x70, 15);
    print("virtio-mmio: %lu sectors\n", (uint64_t)read32(base + 0x100));
    return read32(base + 0x70) == 15;
}

static void describe(unsigned index, volatile void *address, uint32_t length, uint16_t flags)
{
    queue.table[index].address = (uint64_t)address;
    queue.table[index].length = length;
    queue.table[index].flags = flags;
    queue.table[index].next = index + 1;
}

static int request(uint32_t type, uint64_t number, void *data)
{
    unsigned count = 0;
    uint16_t before = queue.used.index;
    header.type = type;
    header.sector = number;
    status = 0xff;
    describe(count++, &header, sizeof header, NEXT);
    if (data)
        describe(count++, data, SECTOR, NEXT | (type == READ_SECTOR ? WRITE : 0));
    describe(count, &status, 1, WRITE);
    queue.available.ring[queue.available.index % QUEUE_SIZE] = 0;
    asm volatile("" : : : "memory");
    queue.available.index++;
    if (notify)
        *notify = 0;
    else
        write32(VIRTIO_MMIO + 0x50, 0);
    while (queue.used.index == before)
        pause();
    asm volatile("" : : : "memory");
    return status == 0;
}

int main(void)
{
    int slot = list_pci();
    int ok = slot >= 0 ? start_pci(slot) : start_mmio();
    if (ok < 0) {
        print("disk: no disk\n");
        return 0;
    }
    if (!ok || !request(READ_SECTOR, 0, sector))
        return 1;
    for (unsigned i = 0; i < SECTOR; i++)
        other[i] = ~sector[i];
    if (!request(WRITE_SECTOR, 1, other))
        return 2;
    memset(other, 0, SECTOR);
    if (!request(READ_SECTOR, 1, other))
        return 3;
    for (unsigned i = 0; i < SECTOR; i++)
        if ((uint8_t)(other[i] ^ sector[i]) != 0xff)
            return 4;
    if (request(READ_SECTOR, 1ull << 40, other)) /* far outside: refused, and nothing else */
        return 5;
    if (!request(READ_SECTOR, 0, other) || memcmp(sector, other, SECTOR))
        return 6;
    print("disk: read, written and read back\n");
    return 0;
}
