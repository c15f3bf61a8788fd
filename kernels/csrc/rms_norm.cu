// Launches of the RMS norm's kernel.
#include "rms_norm.h"

#include <algorithm>

#include "launch.h"
#include "shadow/rms_norm.cuh"

namespace shadow {
namespace {

constexpr int kMostOctets = 8;  // of a thread
constexpr int kWarpColumns = 32 * 8;

using Kernel = void (*)(RmsNormParams);

struct Variant {
  int num_octets;
  Kernel kernel;
};

template <typename T>
Variant find_variant(int num_octets) {
  if (num_octets <= 1) return {1, add_rms_norm_kernel<T, 1>};
  if (num_octets <= 2) return {2, add_rms_norm_kernel<T, 2>};
  if (num_octets <= 4) return {4, add_rms_norm_kernel<T, 4>};
  return {kMostOctets, add_rms_norm_kernel<T, kMostOctets>};
}

Variant find_variant(DataType type, int num_octets) {
  switch (type) {
    case DataType::kBFloat16:
      return find_variant<__nv_bfloat16>(num_octets);
    case DataType::kFloat16:
      return find_variant<__half>(num_octets);
    default:
      return find_variant<float>(num_octets);
  }
}

}  // namespace

int most_rms_columns() { return 8 * kRmsThreads * kMostOctets; }

cudaError_t launch_add_rms_norm(const RmsNormParams& params, DataType type, cudaStream_t stream) {
  if (params.hidden_size > most_rms_columns()) return cudaErrorInvalidValue;
  if (params.num_tokens == 0) return cudaSuccess;
  const int num_threads = std::min(kRmsThreads, 32 * divide_up(params.hidden_size, kWarpColumns));
  const Variant variant = find_variant(type, divide_up(params.hidden_size, 8 * num_threads));
  cudaLaunchAttribute attribute = early_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(params.num_tokens);
  config.blockDim = dim3(num_threads);
  config.dynamicSmemBytes = sizeof(float) * variant.num_octets * num_threads / kRmsSliceOctets;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = is_launched_early(stream) ? 1 : 0;
  return cudaLaunchKernelEx(&config, variant.kernel, params);
}

}  // namespace shadow
