// Host interface of the slot_linear kernels; knows CUDA's runtime, no tensor library.
#pragma once

#include <cuda_runtime.h>

#include "shadow/slot_linear_params.h"

namespace shadow {

// How one call is cut, as slot_linear::Cut has it: 1 and 2, or 2 and 2.
struct SlotLinearCut {
  int num_groups, num_octets;

  bool operator==(const SlotLinearCut&) const = default;
};

// Launches on the current device. is_half: fp16, else bf16. cudaErrorInvalidValue: no such cut, or too many tokens.
cudaError_t launch_slot_linear(SlotLinearParams params, bool is_half, SlotLinearCut cut, cudaStream_t stream);

}  // namespace shadow
