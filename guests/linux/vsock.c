/* A vsock echo for the tests' guests: 32-bit, without a C library, system calls by int 0x80, so that
 * it also runs where 64-bit user space does not.
 *
 *     vsock listen PORT     takes one connection and sends back what comes, until its end
 *     vsock connect PORT    sends standard input to the host's PORT, prints what comes back
 */
enum { EXIT = 1, READ = 3, WRITE = 4, CLOSE = 6, SOCKET = 359, BIND = 361, CONNECT = 362 };
enum { LISTEN = 363, ACCEPT4 = 364, SHUTDOWN = 373 };
enum { AF_VSOCK = 40, SOCK_STREAM = 1, SHUT_WR = 1 };
enum { CID_HOST = 2 };
#define CID_ANY 0xffffffffu

struct sockaddr_vm {
    unsigned short family, reserved;
    unsigned port, cid;
    unsigned char flags, zero[3];
};

static long call(long number, long a, long b, long c, long d)
{
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d)
                     : "memory");
    return result;
}

static void quit(long status)
{
    call(EXIT, status, 0, 0, 0);
}

/* Ends the program with the step that failed. */
static long need(long result, int step)
{
    if (result < 0)
        quit(step);
    return result;
}

static void write_all(long to, const char *data, long size)
{
    while (size > 0) {
        long done = need(call(WRITE, to, (long)data, size, 0), 20);
        data += done;
        size -= done;
    }
}

static void copy(long from, long to)
{
    static char buffer[16384];
    long got;
    while ((got = need(call(READ, from, (long)buffer, sizeof buffer, 0), 21)) > 0)
        write_all(to, buffer, got);
}

__attribute__((used)) void program(long *stack)
{
    const char **argv = (const char **)(stack + 1);
    struct sockaddr_vm address = {.family = AF_VSOCK};
    if (stack[0] != 3)
        quit(10);
    for (const char *digit = argv[2]; *digit; digit++)
        address.port = address.port * 10 + (unsigned)(*digit - '0');
    long end = need(call(SOCKET, AF_VSOCK, SOCK_STREAM, 0, 0), 11);
    if (argv[1][0] == 'l') {
        address.cid = CID_ANY;
        need(call(BIND, end, (long)&address, sizeof address, 0), 12);
        need(call(LISTEN, end, 1, 0, 0), 13);
        write_all(1, "listening\n", 10);
        long peer = need(call(ACCEPT4, end, 0, 0, 0), 14);
        copy(peer, peer);
        call(CLOSE, peer, 0, 0, 0);
    } else {
        address.cid = CID_HOST;
        need(call(CONNECT, end, (long)&address, sizeof address, 0), 15);
        copy(0, end);
        need(call(SHUTDOWN, end, SHUT_WR, 0, 0), 16);
        copy(end, 1);
    }
    quit(0);
}

__asm__(".globl _start\n_start: mov %esp, %eax\npush %eax\ncall program\n");
