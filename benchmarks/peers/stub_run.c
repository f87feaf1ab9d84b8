/* LD_PRELOAD=stub_run.so STUB_EXITS=N COMMAND: takes the kernel out of KVM_RUN, to see what a run loop itself costs.
 * The first KVM_RUN on a vCPU goes to the kernel and comes back with a real exit. The following N - 1 return 0 at once with
 * kvm_run as that exit left it, as if the guest had done the same access again; after them the exit reason is HLT.
 * Whatever calls the C library's ioctl() is measured alike: the raw C loop and pykvm's. One vCPU per process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

static int (*real_ioctl)(int, unsigned long, ...);
static unsigned long left;
static struct kvm_run *run;

__attribute__((constructor)) static void find(void)
{
    const char *exits = getenv("STUB_EXITS");
    left = exits ? strtoul(exits, NULL, 10) : 0;
    real_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (request != KVM_RUN || !left)
        return real_ioctl(fd, request, argument);
    if (!run) {
        void *page = mmap(NULL, sizeof *run, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        int result = real_ioctl(fd, request, argument);
        if (page != MAP_FAILED && result == 0)
            run = page;
        return result;
    }
    if (--left == 0)
        run->exit_reason = KVM_EXIT_HLT;
    return 0;
}
