// What the last lane to arrive does for all lanes of a collective operation.
#pragma once

#include "scheduler.h"

namespace emulation {

/// out ← in of lane `parameter`.
void complete_exchange(Arrival* lanes, unsigned mask);
/// out ← the union of in, unsigned.
void complete_ballot(Arrival* lanes, unsigned mask);

/// in and out of mma.m16n8k16: the registers of one lane.
struct MmaIn {
    unsigned a[4], b[2];
    float c[4];
};
/// out: float[4]; parameter: 0 for fp16, 1 for bf16.
void complete_mma(Arrival* lanes, unsigned mask);

}  // namespace emulation
