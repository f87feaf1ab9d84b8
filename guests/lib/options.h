/* What the guest was told on its command line: `name=value` words (options.c). */
#pragma once
#include "runtime.h"

const char *command_line(void);
const char *option_text(const char *name, const char *after);
uint64_t option(const char *name, uint64_t otherwise);
int option_is(const char *name, const char *value);
int option_word(const char *word);
uint64_t number_at(const char **text);
