// Host interface of silu_and_mul; knows CUDA's runtime, no tensor library.
#pragma once

#include <cuda_runtime.h>

#include "boundary.h"
#include "shadow/silu_and_mul_params.h"

namespace shadow {

// Launches on the current device; params.row_blocks is found here.
cudaError_t launch_silu_and_mul(SiluAndMulParams params, int64_t num_tokens, DataType type, cudaStream_t stream);

}  // namespace shadow
