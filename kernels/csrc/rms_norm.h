// Host interface of the RMS norm's kernel; knows CUDA's runtime, no tensor library.
#pragma once

#include <cuda_runtime.h>

#include "boundary.h"
#include "shadow/rms_norm_params.h"

namespace shadow {

// The longest row, in columns.
int most_rms_columns();

// Launches on the current device. cudaErrorInvalidValue: a longer row.
cudaError_t launch_add_rms_norm(const RmsNormParams& params, DataType type, cudaStream_t stream);

}  // namespace shadow
