/* options.c: the command line, as a PVH loader hands it over (see pvh.S), or a buffer that the host
   filled in. */
#include "options.h"

struct start_info { /* Xen's hvm/start_info.h */
    uint32_t magic, version, flags, modules;
    uint64_t module_list, command_line;
};

extern uint32_t pvh_start_info; /* 0: started in long mode, by an ELF loader */
char cmdline[256];              /* a parameter: the host may set it instead */

const char *command_line(void)
{
    const struct start_info *info = (void *)(uintptr_t)pvh_start_info;
    if (cmdline[0] == 0 && info && info->magic == 0x336ec578 && info->command_line)
        return (void *)info->command_line;
    return cmdline;
}

static int ends(char c) { return c == ' ' || c == 0; }

/* 1: the word at `at` is `word`, and then comes `end` (or the word is over, for end = 0). */
static int is(const char *at, const char *word, char end)
{
    for (; *word; at++, word++)
        if (*at != *word)
            return 0;
    return end ? *at == end : ends(*at);
}

/* The value of `name=value`, up to the next space; of the next one after `after`; or 0. */
const char *option_text(const char *name, const char *after)
{
    for (const char *at = after ? after : command_line(); *at; at++) {
        if (is(at, name, '=') && (at == command_line() || at[-1] == ' '))
            return at + strlen(name) + 1;
    }
    return 0;
}

int option_word(const char *word)
{
    for (const char *at = command_line(); *at; at++)
        if (is(at, word, 0) && (at == command_line() || at[-1] == ' '))
            return 1;
    return 0;
}

int option_is(const char *name, const char *value)
{
    const char *text = option_text(name, 0);
    return text && is(text, value, 0);
}

/* A number: 4096, 0x1000, 4K, 64M; moves the pointer behind it. */
uint64_t number_at(const char **text)
{
    const char *at = *text;
    unsigned base = 10;
    uint64_t value = 0;
    if (at[0] == '0' && at[1] == 'x') {
        base = 16;
        at += 2;
    }
    for (;; at++) {
        unsigned digit = *at >= '0' && *at <= '9'   ? *at - '0'
                         : *at >= 'a' && *at <= 'f' ? *at - 'a' + 10
                                                    : 99;
        if (digit >= base)
            break;
        value = value * base + digit;
    }
    if (*at == 'K' || *at == 'M' || *at == 'G')
        value <<= *at == 'K' ? 10 : *at == 'M' ? 20 : 30, at++;
    *text = at;
    return value;
}

uint64_t option(const char *name, uint64_t otherwise)
{
    const char *text = option_text(name, 0);
    return text ? number_at(&text) : otherwise;
}
