/* A 32-bit word that several threads change at the same time: the interrupt status of a virtio
 * device, whose bits native code sets (pykvm_vq_signal) while Python acknowledges them. */
#ifndef PYKVM_WORD_H
#define PYKVM_WORD_H
#include <stdint.h>

uint32_t pykvm_word_or(uint32_t *word, uint32_t bits);  /* the value before */
uint32_t pykvm_word_and(uint32_t *word, uint32_t bits); /* the value before */
#endif
