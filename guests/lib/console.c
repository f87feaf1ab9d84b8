/* console.c: a line of text on COM1.

   A driver for real hardware waits for LSR.THRE before each byte. A VMM's transmitter is always
   ready, and a look at LSR would cost an exit, so these guests do not look; REP OUTSB hands over
   a whole line in one exit. */
#include <stdarg.h>
#include "runtime.h"

enum { COM1 = 0x3f8 };

void serial_write(const char *bytes, size_t n)
{
    asm volatile("rep outsb" : "+S"(bytes), "+c"(n) : "d"((uint16_t)COM1) : "memory");
}

static char *put_number(char *to, uint64_t value, unsigned base, int width, char pad)
{
    char digits[24];
    int n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    for (; width > n; width--)
        *to++ = pad;
    while (n)
        *to++ = digits[--n];
    return to;
}

/* A small printf: %s %c %d %u %x %%, `l` for 64 bits, a width, and 0 for padding.
   A line may have up to 500 characters; what a %s would make longer is cut off. */
void print(const char *format, ...)
{
    char line[512], *to = line, *end = line + sizeof line - 32;
    va_list arguments;
    va_start(arguments, format);
    for (; *format && to < end; format++) {
        if (*format != '%') {
            *to++ = *format;
            continue;
        }
        char pad = *++format == '0' ? '0' : ' ';
        int width = 0, wide = 0;
        for (; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + *format - '0';
        if (width > 20)
            width = 20;
        for (; *format == 'l'; format++)
            wide = 1;
        switch (*format) {
        case 's':
            for (const char *s = va_arg(arguments, const char *); *s && to < end; s++)
                *to++ = *s;
            break;
        case 'c':
            *to++ = (char)va_arg(arguments, int);
            break;
        case 'd': {
            int64_t value = wide ? va_arg(arguments, int64_t) : va_arg(arguments, int);
            if (value < 0)
                *to++ = '-';
            to = put_number(to, value < 0 ? -(uint64_t)value : (uint64_t)value, 10, width, pad);
            break;
        }
        case 'u':
        case 'x': {
            uint64_t value = wide ? va_arg(arguments, uint64_t) : va_arg(arguments, unsigned);
            to = put_number(to, value, *format == 'u' ? 10 : 16, width, pad);
            break;
        }
        default:
            *to++ = *format;
        }
    }
    va_end(arguments);
    serial_write(line, to - line);
}
