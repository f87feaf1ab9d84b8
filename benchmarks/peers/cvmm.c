/* cvmm [-m MIB] [-i] FILE: the plainest VMM that boots a static ELF64 guest in long mode and shows its serial output.
 * It is the peer for "shell to first serial byte": no options that matter, no device but a COM1 that is always ready and the
 * debug-exit port. -m: guest RAM in MiB (64). -i: create the in-kernel interrupt controllers and PIT as well.
 * Exit status: 0 halted, (v << 1) | 1 for v written to port 0xf4, 126 triple fault or KVM error, 125 usage or host error. */
#define _GNU_SOURCE
#include "rawkvm.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COM1 = 0x3f8, COM1_LSR = COM1 + 5, DEBUG_EXIT = 0xf4 };
enum { LSR_READY = 0x60 }; /* transmitter holding register and shift register empty */

/* The low 640 KiB hold the tables: PML4, PDPT, four page directories, at the end so that images rarely meet them. */
enum { TABLES = 0x90000, PML4 = TABLES, PDPT = TABLES + 0x1000, PD = TABLES + 0x2000, GDT = TABLES + 0x6000 };

static uint64_t load_elf64(struct raw_vm *vm, const char *path)
{
    struct stat about;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about) < 0)
        raw_die("%s: %s", path, strerror(errno));
    size_t size = (size_t)about.st_size;
    const uint8_t *file = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file == MAP_FAILED)
        raw_die("%s: %s", path, strerror(errno));
    close(fd);

    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    if (size < sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64 ||
        header->e_machine != EM_X86_64 || header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phoff > size ||
        header->e_phnum > (size - header->e_phoff) / sizeof(Elf64_Phdr))
        raw_die("%s: not an x86-64 ELF64 image", path);
    const Elf64_Phdr *segments = (const Elf64_Phdr *)(file + header->e_phoff);
    uint64_t entry = header->e_entry;
    for (unsigned i = 0; i < header->e_phnum; i++) {
        const Elf64_Phdr *s = &segments[i];
        if (s->p_type != PT_LOAD)
            continue;
        if (s->p_offset > size || s->p_filesz > size - s->p_offset || s->p_filesz > s->p_memsz ||
            s->p_paddr > vm->memory_size || s->p_memsz > vm->memory_size - s->p_paddr)
            raw_die("%s: segment %u does not fit", path, i);
        if (s->p_paddr < GDT + 0x1000 && s->p_paddr + s->p_memsz > TABLES)
            raw_die("%s: segment %u lies on the page tables at %#x", path, i, TABLES);
        memcpy(vm->memory + s->p_paddr, file + s->p_offset, s->p_filesz);
        if (header->e_entry >= s->p_vaddr && header->e_entry - s->p_vaddr < s->p_memsz)
            entry = header->e_entry - s->p_vaddr + s->p_paddr;
    }
    munmap((void *)file, size);
    return entry;
}

/* 64-bit mode with the first 4 GiB mapped one to one by 2 MiB pages (SDM volume 3A, 5.5; entries: present, writable). */
static void long_mode(struct raw_vm *vm, uint64_t entry)
{
    uint64_t *pml4 = (uint64_t *)(vm->memory + PML4), *pdpt = (uint64_t *)(vm->memory + PDPT);
    uint64_t *pd = (uint64_t *)(vm->memory + PD), *gdt = (uint64_t *)(vm->memory + GDT);
    pml4[0] = PDPT | 3;
    for (uint64_t i = 0; i < 4; i++)
        pdpt[i] = (PD + i * 0x1000) | 3;
    for (uint64_t i = 0; i < 2048; i++)
        pd[i] = i << 21 | 0x83; /* PS */
    gdt[1] = 0x00af9b000000ffff; /* 64-bit code, accessed */
    gdt[2] = 0x00cf93000000ffff; /* data, accessed */

    struct kvm_sregs sregs;
    raw_ioctl(vm->vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 0xb, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 23;
    sregs.cr3 = PML4;
    sregs.cr4 |= 1 << 5;             /* PAE */
    sregs.cr0 |= 0x80000001u;        /* PG, PE */
    sregs.efer |= 1 << 8 | 1 << 10;  /* LME, LMA */
    raw_ioctl(vm->vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = entry, .rsp = TABLES, .rflags = 2};
    raw_ioctl(vm->vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

static void write_all(const uint8_t *data, size_t length)
{
    while (length) {
        ssize_t n = write(STDOUT_FILENO, data, length);
        if (n < 0)
            raw_die("stdout: %s", strerror(errno));
        data += n;
        length -= (size_t)n;
    }
}

static void pio(struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    size_t length = (size_t)run->io.size * run->io.count;
    if (run->io.direction == KVM_EXIT_IO_IN)
        memset(data, run->io.port == COM1_LSR ? LSR_READY : run->io.port >= COM1 && run->io.port < COM1 + 8 ? 0 : 0xff, length);
    else if (run->io.port == COM1)
        write_all(data, length);
    else if (run->io.port == DEBUG_EXIT)
        exit(data[0] << 1 | 1);
}

static int run(struct raw_vm *vm)
{
    for (;;) {
        if (ioctl(vm->vcpu, KVM_RUN, 0) < 0 && errno != EINTR)
            raw_die("KVM_RUN: %s", strerror(errno));
        switch (vm->run->exit_reason) {
        case KVM_EXIT_IO:
            pio(vm->run);
            break;
        case KVM_EXIT_MMIO:
            if (!vm->run->mmio.is_write)
                memset(vm->run->mmio.data, 0xff, sizeof vm->run->mmio.data);
            break;
        case KVM_EXIT_HLT:
            return 0;
        default:
            fprintf(stderr, "guest stopped: exit reason %u\n", vm->run->exit_reason);
            return 126;
        }
    }
}

int main(int argc, char **argv)
{
    struct raw_vm vm;
    unsigned long mebibytes = 64;
    int irqchip = 0, option;
    while ((option = getopt(argc, argv, "m:i")) != -1)
        if (option == 'm')
            mebibytes = raw_number(optarg);
        else if (option == 'i')
            irqchip = 1;
        else
            return 125;
    if (optind != argc - 1 || mebibytes < 1 || mebibytes > 3072)
        raw_die("usage: cvmm [-m MIB] [-i] FILE (1 to 3072 MiB)");
    raw_create(&vm, mebibytes << 20, irqchip);
    long_mode(&vm, load_elf64(&vm, argv[optind]));
    int status = run(&vm);
    raw_destroy(&vm);
    return status;
}
