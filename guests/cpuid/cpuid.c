/* cpuid: what the virtual CPU says about itself, and some model-specific registers. */
#include "runtime.h"

struct bit {
    uint8_t reg, bit; /* reg: 0 = EAX, 1 = EBX, 2 = ECX, 3 = EDX */
    char name[14];
};

/* Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E. */
static const struct bit leaf1[] = {
    {3, 0, "fpu"},     {3, 3, "pse"},     {3, 4, "tsc"},      {3, 5, "msr"},     {3, 6, "pae"},
    {3, 8, "cx8"},     {3, 9, "apic"},    {3, 15, "cmov"},    {3, 24, "fxsr"},   {3, 25, "sse"},
    {3, 26, "sse2"},   {2, 0, "sse3"},    {2, 9, "ssse3"},    {2, 13, "cx16"},   {2, 17, "pcid"},
    {2, 19, "sse4.1"}, {2, 20, "sse4.2"}, {2, 21, "x2apic"},  {2, 22, "movbe"},  {2, 23, "popcnt"},
    {2, 25, "aes"},    {2, 26, "xsave"},  {2, 28, "avx"},     {2, 30, "rdrand"},
    {2, 31, "hypervisor"},
};
static const struct bit leaf7[] = {
    {1, 0, "fsgsbase"}, {1, 3, "bmi1"},  {1, 5, "avx2"},  {1, 7, "smep"},  {1, 8, "bmi2"},
    {1, 9, "erms"},     {1, 16, "avx512f"}, {1, 20, "smap"}, {2, 2, "umip"}, {2, 3, "pku"},
    {2, 16, "la57"},    {2, 22, "rdpid"},
};
static const struct bit leaf80000001[] = {
    {3, 11, "syscall"}, {3, 20, "nx"}, {3, 26, "1gib-pages"}, {3, 27, "rdtscp"}, {3, 29, "lm"},
    {2, 0, "lahf"},     {2, 2, "svm"},
};

static void print_bits(const uint32_t regs[4], const struct bit *bits, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (regs[bits[i].reg] >> bits[i].bit & 1)
            print(" %s", bits[i].name);
}

static int refused;
static uint64_t after_rdmsr;

static void on_gp(struct frame *frame)
{
    refused = 1;
    frame->rip = after_rdmsr;
}

static void print_msr(uint32_t msr, const char *name)
{
    uint32_t low = 0, high = 0;
    refused = 0;
    asm volatile("lea r8, 1f[rip]; mov %2, r8; rdmsr; 1:"
                 : "+a"(low), "+d"(high), "=m"(after_rdmsr)
                 : "c"(msr)
                 : "r8", "memory");
    if (refused)
        print("msr 0x%08x %s: #GP\n", msr, name);
    else
        print("msr 0x%08x %s: 0x%08x%08x\n", msr, name, high, low);
}

int main(void)
{
    uint32_t r[4];
    char text[49];

    cpuid(0, 0, r);
    uint32_t max = r[0];
    memcpy(text, &r[1], 4);
    memcpy(text + 4, &r[3], 4);
    memcpy(text + 8, &r[2], 4);
    text[12] = 0;
    print("vendor: %s, highest leaf 0x%x\n", text, max);

    cpuid(0x80000000, 0, r);
    uint32_t extended = r[0];
    if (extended >= 0x80000004) {
        for (unsigned i = 0; i < 3; i++) {
            cpuid(0x80000002 + i, 0, r);
            memcpy(text + 16 * i, r, 16);
        }
        text[48] = 0;
        if (text[0])
            print("model: %s\n", text);
    }

    cpuid(1, 0, r);
    print("family/model/stepping: 0x%08x, APIC id %u\n", r[0], r[1] >> 24);
    print("features:");
    print_bits(r, leaf1, sizeof leaf1 / sizeof leaf1[0]);
    int hypervisor = r[2] >> 31;
    if (max >= 7) {
        cpuid(7, 0, r);
        print_bits(r, leaf7, sizeof leaf7 / sizeof leaf7[0]);
    }
    if (extended >= 0x80000001) {
        cpuid(0x80000001, 0, r);
        print_bits(r, leaf80000001, sizeof leaf80000001 / sizeof leaf80000001[0]);
    }
    print("\n");
    if (extended >= 0x80000008) {
        cpuid(0x80000008, 0, r);
        print("address bits: %u physical, %u linear\n", r[0] & 0xff, r[0] >> 8 & 0xff);
    }
    if (hypervisor) {
        cpuid(0x40000000, 0, r);
        memcpy(text, &r[1], 12);
        text[12] = 0;
        print("hypervisor: %s\n", text);
    }

    set_handler(VECTOR_GP, on_gp);
    print_msr(0x1b, "IA32_APIC_BASE");
    print_msr(0x1a0, "IA32_MISC_ENABLE");
    print_msr(0x277, "IA32_PAT");
    print_msr(0xc0000080, "IA32_EFER");
    print_msr(0xc0000081, "IA32_STAR");
    print_msr(0x12345678, "(no such register)");
    return 0;
}
