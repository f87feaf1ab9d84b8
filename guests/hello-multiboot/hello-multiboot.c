/* hello-multiboot: prints what a multiboot loader handed over. */
#include <stdint.h>

enum {
    BOOT_MAGIC = 0x2badb002,
    HAS_MEMORY = 1 << 0, HAS_CMDLINE = 1 << 2, HAS_MODULES = 1 << 3, HAS_MAP = 1 << 6,
    HAS_LOADER_NAME = 1 << 9,
};

struct information {
    uint32_t flags;
    uint32_t mem_lower, mem_upper; /* KiB below 1 MiB, and from 1 MiB up */
    uint32_t boot_device;
    uint32_t cmdline;
    uint32_t mods_count, mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length, mmap_addr;
    uint32_t drives_length, drives_addr;
    uint32_t config_table;
    uint32_t boot_loader_name;
};

struct module {
    uint32_t start, end, string, reserved;
};

struct map_entry {
    uint32_t size; /* of the rest of the entry */
    uint64_t base, length;
    uint32_t type; /* 1 = free memory */
} __attribute__((packed));

static void put(const char *text)
{
    for (; *text; text++)
        asm volatile("out dx, al" : : "d"((uint16_t)0x3f8), "a"(*text));
}

static void put_hex(uint64_t value)
{
    char text[19] = "0x", *to = text + 2;
    int shift = 60;
    while (shift && !(value >> shift & 15))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        *to++ = "0123456789abcdef"[value >> shift & 15];
    *to = 0;
    put(text);
}

/* Up to 40 characters of memory, with a dot for what is not printable. */
static void put_bytes(uint32_t address, uint32_t n)
{
    char text[2] = "";
    for (uint32_t i = 0; i < n && i < 40; i++) {
        char byte = *(const char *)(address + i);
        text[0] = byte >= ' ' && byte <= '~' ? byte : '.';
        put(text);
    }
}

int main(uint32_t magic, const struct information *info)
{
    put("Hello from a multiboot kernel\n");
    if (magic != BOOT_MAGIC) {
        put("not started by a multiboot loader: eax is ");
        put_hex(magic);
        put("\n");
        return 1;
    }
    if (info->flags & HAS_LOADER_NAME) {
        put("loader: ");
        put((const char *)info->boot_loader_name);
        put("\n");
    }
    if (info->flags & HAS_CMDLINE) {
        put("command line: ");
        put((const char *)info->cmdline);
        put("\n");
    }
    if (info->flags & HAS_MEMORY) {
        put("memory: ");
        put_hex(info->mem_lower);
        put(" KiB below 1 MiB, ");
        put_hex(info->mem_upper);
        put(" KiB above\n");
    }
    if (info->flags & HAS_MAP) {
        uint32_t at = info->mmap_addr, end = at + info->mmap_length;
        while (at < end) {
            const struct map_entry *entry = (const void *)at;
            put("map: ");
            put_hex(entry->base);
            put(" + ");
            put_hex(entry->length);
            put(entry->type == 1 ? " free\n" : " reserved\n");
            at += entry->size + sizeof entry->size;
        }
    }
    if (info->flags & HAS_MODULES) {
        const struct module *module = (const void *)info->mods_addr;
        for (uint32_t i = 0; i < info->mods_count; i++, module++) {
            put("module: ");
            put_hex(module->start);
            put(" to ");
            put_hex(module->end);
            put(", \"");
            put(module->string ? (const char *)module->string : "");
            put("\": ");
            put_bytes(module->start, module->end - module->start);
            put("\n");
        }
    }
    return 0;
}
