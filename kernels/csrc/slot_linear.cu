// Launches of the slot_linear kernels.
#include "slot_linear.h"

#include <algorithm>

#include "launch.h"
#include "shadow/slot_linear.cuh"

namespace shadow {
namespace {

namespace sl = slot_linear;
using Kernel = void (*)(SlotLinearParams);

struct Variant {
  SlotLinearCut cut;
  Kernel kernel;
  int shared_bytes;
};

template <typename T, int kGroups, int kOctets>
constexpr Variant variant() {
  using C = sl::Cut<kGroups, kOctets>;
  return {{kGroups, kOctets}, sl::slot_linear_kernel<T, C>, static_cast<int>(sizeof(sl::Shared<C>))};
}

template <typename T>
const Variant* find_variant(SlotLinearCut cut) {
  static constexpr Variant kVariants[] = {variant<T, 1, 2>(), variant<T, 2, 2>()};
  for (const Variant& one : kVariants) {
    if (one.cut == cut) return &one;
  }
  return nullptr;
}

int count_multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace

cudaError_t launch_slot_linear(SlotLinearParams params, bool is_half, SlotLinearCut cut, cudaStream_t stream) {
  const Variant* variant = is_half ? find_variant<__half>(cut) : find_variant<__nv_bfloat16>(cut);
  if (variant == nullptr || params.num_tokens > sl::kTokens) return cudaErrorInvalidValue;
  const void* address = reinterpret_cast<const void*>(variant->kernel);
  if (cudaError_t error = allow_shared_memory(address, variant->shared_bytes, false)) return error;
  const int most_items = params.num_tokens * divide_up(params.num_outputs, sl::kGroup * cut.num_groups);
  params.num_blocks = std::min(most_items, sl::kBlocksAtOnce * count_multiprocessors());
  cudaLaunchAttribute attribute = early_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1 + params.num_blocks);
  config.blockDim = dim3(sl::kThreads);
  config.dynamicSmemBytes = variant->shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = is_launched_early(stream) ? 1 : 0;
  return cudaLaunchKernelEx(&config, variant->kernel, params);
}

}  // namespace shadow
