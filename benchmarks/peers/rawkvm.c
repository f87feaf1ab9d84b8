/* See rawkvm.h. Source: Documentation/virt/kvm/api.rst, sections 4.1-4.13; segment values as after the usual GDT load. */
#define _GNU_SOURCE
#include "rawkvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

void raw_die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(125);
}

uint64_t raw_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

unsigned long raw_number(const char *text)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 0);
    if (errno || end == text || *end)
        raw_die("not a number: %s", text);
    return value;
}

size_t raw_read_file(const char *path, void *to, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        raw_die("%s: %s", path, strerror(errno));
    size_t done = 0;
    for (;;) {
        ssize_t n = read(fd, (char *)to + done, room - done);
        if (n < 0)
            raw_die("%s: %s", path, strerror(errno));
        if (n == 0)
            break;
        done += (size_t)n;
        if (done == room)
            raw_die("%s: larger than %zu bytes", path, room - 1);
    }
    close(fd);
    return done;
}

int raw_ioctl(int fd, unsigned long request, void *argument, const char *name)
{
    int result = ioctl(fd, request, argument);
    if (result < 0)
        raw_die("%s: %s", name, strerror(errno));
    return result;
}

static void create_irqchip(struct raw_vm *vm)
{
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    raw_ioctl(vm->vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP");
    raw_ioctl(vm->vm, KVM_CREATE_PIT2, &pit, "KVM_CREATE_PIT2");
}

void raw_create(struct raw_vm *vm, size_t memory_size, int irqchip)
{
    vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->kvm < 0)
        raw_die("/dev/kvm: %s", strerror(errno));
    vm->vm = raw_ioctl(vm->kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    raw_ioctl(vm->vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000ul, "KVM_SET_TSS_ADDR");
    if (irqchip)
        create_irqchip(vm);

    int memfd = memfd_create("guest-ram", MFD_CLOEXEC);
    if (memfd < 0 || ftruncate(memfd, (off_t)memory_size) < 0)
        raw_die("memfd of %zu bytes: %s", memory_size, strerror(errno));
    vm->memory_size = memory_size;
    vm->memory = mmap(NULL, memory_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memfd, 0);
    if (vm->memory == MAP_FAILED)
        raw_die("mmap of guest RAM: %s", strerror(errno));
    close(memfd);
    struct kvm_userspace_memory_region region = {
        .memory_size = memory_size,
        .userspace_addr = (uint64_t)(uintptr_t)vm->memory,
    };
    raw_ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");

    vm->run_size = (size_t)raw_ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    vm->vcpu = raw_ioctl(vm->vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    vm->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
    if (vm->run == MAP_FAILED)
        raw_die("mmap of kvm_run: %s", strerror(errno));
}

void raw_destroy(struct raw_vm *vm)
{
    munmap(vm->run, vm->run_size);
    close(vm->vcpu);
    close(vm->vm);
    munmap(vm->memory, vm->memory_size);
    close(vm->kvm);
}

static void enter_at(struct raw_vm *vm, uint64_t entry)
{
    struct kvm_regs regs = {.rip = entry, .rflags = 2};
    raw_ioctl(vm->vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

void raw_protected_mode(struct raw_vm *vm, uint64_t entry)
{
    struct kvm_sregs sregs;
    struct kvm_segment code = {
        .limit = 0xffffffff, .selector = 0x08, .type = 0xb, .present = 1, .s = 1, .db = 1, .g = 1,
    };
    struct kvm_segment data = code;
    data.type = 0x3;
    data.selector = 0x10;
    raw_ioctl(vm->vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.cr0 |= 1; /* PE */
    raw_ioctl(vm->vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    enter_at(vm, entry);
}

void raw_real_mode(struct raw_vm *vm, uint64_t entry)
{
    struct kvm_sregs sregs;
    raw_ioctl(vm->vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    raw_ioctl(vm->vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    enter_at(vm, entry);
}
