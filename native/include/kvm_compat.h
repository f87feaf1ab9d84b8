/* <linux/kvm.h>, and what newer kernels add to it, for hosts whose headers are older than their
 * kernel. Every definition is guarded: the installed header wins. */
#ifndef PYKVM_KVM_COMPAT_H
#define PYKVM_KVM_COMPAT_H
#include <linux/kvm.h>

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#endif
