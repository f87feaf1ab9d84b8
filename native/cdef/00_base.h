typedef uint8_t __u8; typedef uint16_t __u16; typedef uint32_t __u32; typedef unsigned long long __u64;
typedef int32_t __s32; typedef long long __s64;

struct pykvm_constant { const char *name; long long value; };
extern const struct pykvm_constant pykvm_caps[];
extern const struct pykvm_constant pykvm_exits[];
extern const struct pykvm_constant pykvm_ioctls[];

long pykvm_ioctl(int fd, unsigned long request, void *argument);
long pykvm_ioctl_int(int fd, unsigned long request, unsigned long argument);
