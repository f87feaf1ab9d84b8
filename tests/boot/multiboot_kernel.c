/* A multiboot kernel that prints on COM1 what its boot loader told it, then ends with code 0x21. */

typedef unsigned int u32;
typedef unsigned long long u64;

struct info {
    u32 flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
    u32 shdr_num, shdr_size, shdr_addr, shdr_shndx;
    u32 mmap_length, mmap_addr, drives_length, drives_addr, config_table, name;
} __attribute__((packed));
struct module { u32 start, end, string, zero; } __attribute__((packed));
struct area { u32 size; u64 base, length; u32 type; } __attribute__((packed));

static void out(unsigned short port, unsigned char value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void text(const char *s)
{
    while (*s)
        out(0x3f8, *s++);
}

static void hex(u64 value)
{
    int shift = 60;
    while (shift && !(value >> shift & 15))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        out(0x3f8, "0123456789abcdef"[value >> shift & 15]);
}

static void field(const char *name, u64 value)
{
    text(name);
    out(0x3f8, '=');
    hex(value);
    out(0x3f8, ' ');
}

char zeros[70000]; /* must be clear, and nothing may lie in it */

__attribute__((used)) void kernel(u32 magic, const struct info *info)
{
    u32 eflags, cr0;
    u32 set = 0;
    __asm__ volatile("pushf; pop %0" : "=r"(eflags));
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    for (u32 i = 0; i < sizeof zeros; i++)
        set += zeros[i] != 0;
    field("magic", magic);
    field("flags", info->flags);
    field("lower", info->mem_lower);
    field("upper", info->mem_upper);
    field("if", eflags >> 9 & 1);
    field("pg", cr0 >> 31);
    field("pe", cr0 & 1);
    field("bss", set);
    text("\nname=");
    text((const char *)info->name);
    text("\ncmdline=");
    text((const char *)info->cmdline);
    out(0x3f8, '\n');
    const struct module *m = (const struct module *)info->mods_addr;
    for (u32 i = 0; i < info->mods_count; i++) {
        u32 sum = 0;
        for (u32 at = m[i].start; at < m[i].end; at++)
            sum += *(const unsigned char *)at;
        field("module", m[i].end - m[i].start);
        field("sum", sum);
        field("aligned", !(m[i].start & 4095));
        text((const char *)m[i].string);
        out(0x3f8, '\n');
    }
    u32 at = info->mmap_addr;
    while (at < info->mmap_addr + info->mmap_length) {
        const struct area *a = (const struct area *)at;
        field("area", a->base);
        field("length", a->length);
        field("type", a->type);
        out(0x3f8, '\n');
        at += a->size + 4;
    }
    out(0xf4, 0x21);
    for (;;)
        __asm__ volatile("cli; hlt");
}

__asm__(".pushsection .multiboot, \"a\"\n"
        ".align 4\n"
        ".long 0x1badb002, 3, -(0x1badb002 + 3)\n"
        ".popsection\n"
        ".pushsection .text\n"
        ".globl _start\n"
        "_start: mov $stack_top, %esp\n"
        "push %ebx\n"
        "push %eax\n"
        "call kernel\n"
        ".popsection\n"
        ".pushsection .bss\n"
        ".skip 16384\n"
        "stack_top:\n"
        ".popsection\n");
