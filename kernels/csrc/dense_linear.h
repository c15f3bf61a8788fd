// Host interface of the dense_linear kernels; knows CUDA's runtime, no tensor library.
#pragma once

#include <cuda_runtime.h>

#include "shadow/dense_linear_params.h"

namespace shadow {

// A matrix of 2-byte numbers, rows on 16 bytes.
struct Matrix {
  void* data;
  int64_t num_rows, num_columns, stride;  // stride in elements
};

// Up to how many tokens of a step have a kernel on this device; 0 where none has. Sizes: (N, K) of the weight.
int most_dense_tokens(int64_t num_outputs, int64_t num_inputs, int device);

// Launches on the current device: out = x @ weight.T + bias; params.num_steps is found here. is_half: fp16, else bf16.
// cudaErrorInvalidValue: sizes that have no kernel.
cudaError_t launch_dense_linear(const Matrix& x, const Matrix& weight, DenseLinearParams params, bool is_half,
                                cudaStream_t stream);

}  // namespace shadow
