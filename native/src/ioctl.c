#include <errno.h>
#include <sys/ioctl.h>
#include "pykvm_native.h"

long pykvm_ioctl(int fd, unsigned long request, void *argument)
{
    int r = ioctl(fd, request, argument);
    return r < 0 ? -errno : r;
}

long pykvm_ioctl_int(int fd, unsigned long request, unsigned long argument)
{
    int r = ioctl(fd, request, argument);
    return r < 0 ? -errno : r;
}
