/* work.h: a computation that the host can check without repeating it.

   Each turn is one step of a linear congruential generator (Knuth's MMIX constants), so the
   result after n turns is known in log n steps: see lcg_after() in tests/kvm/guestlib.py. */
#pragma once
#include <stdint.h>

static inline uint64_t lcg(uint64_t turns, uint64_t seed)
{
    while (turns--)
        seed = seed * 6364136223846793005 + 1442695040888963407;
    return seed;
}
