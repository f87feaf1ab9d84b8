uint32_t pykvm_word_or(uint32_t *word, uint32_t bits);
uint32_t pykvm_word_and(uint32_t *word, uint32_t bits);
