#ifndef PYKVM_NATIVE_H
#define PYKVM_NATIVE_H
#include <stddef.h>
#include <stdint.h>
#include "kvm_compat.h"

struct pykvm_constant { const char *name; long long value; };

/* ioctl(2) with the GIL released (cffi does that): the result, or -errno. */
long pykvm_ioctl(int fd, unsigned long request, void *argument);
long pykvm_ioctl_int(int fd, unsigned long request, unsigned long argument);
#endif
