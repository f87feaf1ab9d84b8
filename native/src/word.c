/* Atomic changes of a word; see pykvm_word.h. */
#include "pykvm_word.h"

uint32_t pykvm_word_or(uint32_t *word, uint32_t bits)
{
    return __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
}

uint32_t pykvm_word_and(uint32_t *word, uint32_t bits)
{
    return __atomic_fetch_and(word, bits, __ATOMIC_SEQ_CST);
}
