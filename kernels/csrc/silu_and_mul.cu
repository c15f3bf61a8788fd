// Launches of the kernel of silu_and_mul.
#include "silu_and_mul.h"

#include "launch.h"
#include "shadow/silu_and_mul.cuh"

namespace shadow {
namespace {

using Kernel = void (*)(SiluAndMulParams);

Kernel find_kernel(DataType type) {
  switch (type) {
    case DataType::kBFloat16:
      return silu_and_mul_kernel<__nv_bfloat16>;
    case DataType::kFloat16:
      return silu_and_mul_kernel<__half>;
    default:
      return silu_and_mul_kernel<float>;
  }
}

}  // namespace

cudaError_t launch_silu_and_mul(SiluAndMulParams params, int64_t num_tokens, DataType type, cudaStream_t stream) {
  if (num_tokens == 0) return cudaSuccess;
  params.row_blocks = divide_up(params.num_octets, kSiluThreads);
  cudaLaunchAttribute attribute = early_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(num_tokens * params.row_blocks);
  config.blockDim = dim3(kSiluThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = is_launched_early(stream) ? 1 : 0;
  return cudaLaunchKernelEx(&config, find_kernel(type), params);
}

}  // namespace shadow
