/* What every raw C peer needs: one VM, one piece of memory, one vCPU, and nothing more.
 * The peers are the yardstick: each does by hand, with the fewest calls KVM allows, what pykvm does in the same run.
 * Any failure ends the program with one line on stderr and status 125. */
#ifndef RAWKVM_H
#define RAWKVM_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

#define RAW_LOAD 0x1000u        /* guest-physical address where flat guest code is put, and entered */
#define RAW_MEMORY (1u << 20)   /* bytes of guest RAM of the loop peers */

struct raw_vm {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *memory;
    size_t memory_size;
};

__attribute__((noreturn, format(printf, 1, 2))) void raw_die(const char *format, ...);

uint64_t raw_now_ns(void);                       /* CLOCK_MONOTONIC */
unsigned long raw_number(const char *text);      /* a command-line number, or the end */
size_t raw_read_file(const char *path, void *to, size_t room);
int raw_ioctl(int fd, unsigned long request, void *argument, const char *name);

/* Opens /dev/kvm, creates a VM, gives it `memory_size` bytes at guest-physical 0 (a memfd, so that the kernel accounts
 * guest RAM as shared memory and it can be told from the VMM's own), and creates vCPU 0. irqchip != 0 also creates the
 * in-kernel PIC/IOAPIC/LAPIC and the PIT. */
void raw_create(struct raw_vm *vm, size_t memory_size, int irqchip);
void raw_destroy(struct raw_vm *vm);

/* Flat 32-bit protected mode without paging, entered at `entry`; 16-bit real mode with all bases 0. */
void raw_protected_mode(struct raw_vm *vm, uint64_t entry);
void raw_real_mode(struct raw_vm *vm, uint64_t entry);

#endif
