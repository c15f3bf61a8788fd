// Launches of the dense_linear kernels.
#include "dense_linear.h"

#include <cuda.h>

#include "launch.h"
#include "shadow/dense_linear.cuh"

namespace shadow {
namespace {

namespace dl = dense_linear;
using Kernel = void (*)(TensorMap, TensorMap, DenseLinearParams);

constexpr int kMostTiles = 4, kMostSplit = 8, kLeastSteps = 4;

// How a weight is cut, whatever the step.
struct Plan {
  int num_tiles = 0;  // of 64 outputs, a block; 0: no kernel
  int split = 1;      // blocks that share the inputs

  bool operator==(const Plan&) const = default;
};

// As many blocks as multiprocessors, or little less: each reads its part of the weight from the first moment to the last.
Plan plan_of(int64_t num_outputs, int64_t num_inputs, int num_multiprocessors) {
  const int num_tiles = divide_up(num_outputs, dl::kTileRows), num_steps = divide_up(num_inputs, dl::kStepInputs);
  Plan plan;
  plan.num_tiles = divide_up(num_tiles, num_multiprocessors);
  if (plan.num_tiles > kMostTiles) return {};
  while (plan.num_tiles == 1 && plan.split < kMostSplit && 2 * plan.split * num_tiles <= num_multiprocessors &&
         num_steps >= 2 * plan.split * kLeastSteps) {
    plan.split *= 2;
  }
  return plan;
}

struct Variant {
  Plan plan;
  int num_tokens;
  Kernel kernel;
  int num_threads, shared_bytes;
};

template <typename T, int kTokens, int kTiles, int kSplit>
constexpr Variant variant() {
  using C = dl::Cut<kTokens, kTiles, kSplit>;
  static_assert(C::kStages >= 2);
  return {{kTiles, kSplit}, kTokens, dl::dense_linear_kernel<T, C>, C::kAllThreads, dl::shared_bytes<C>()};
}

template <typename T, int kTiles, int kSplit>
const Variant* find_variant(int num_tokens) {
  static constexpr Variant kVariants[] = {
      variant<T, 8, kTiles, kSplit>(), variant<T, 16, kTiles, kSplit>(), variant<T, 32, kTiles, kSplit>(),
      variant<T, 64, kTiles, kSplit>(), variant<T, dl::kMostTokens, kTiles, kSplit>()};
  for (const Variant& one : kVariants) {
    if (num_tokens <= one.num_tokens) return &one;
  }
  return nullptr;
}

template <typename T>
const Variant* find_variant(Plan plan, int num_tokens) {
  if (plan == Plan{1, 1}) return find_variant<T, 1, 1>(num_tokens);
  if (plan == Plan{1, 2}) return find_variant<T, 1, 2>(num_tokens);
  if (plan == Plan{1, 4}) return find_variant<T, 1, 4>(num_tokens);
  if (plan == Plan{1, 8}) return find_variant<T, 1, 8>(num_tokens);
  if (plan == Plan{2, 1}) return find_variant<T, 2, 1>(num_tokens);
  if (plan == Plan{3, 1}) return find_variant<T, 3, 1>(num_tokens);
  if (plan == Plan{4, 1}) return find_variant<T, 4, 1>(num_tokens);
  return nullptr;
}

int count_multiprocessors(int device) {
  int count = 0;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

decltype(&cuTensorMapEncodeTiled) find_encoder() {
  static const auto encode = [] {
    void* place = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &place, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(place);
  }();
  return encode;
}

// Boxes of box_rows rows and 64 columns, swizzled as the products read them.
cudaError_t encode(TensorMap* map, const Matrix& matrix, bool is_half, int box_rows) {
  const auto encode_tiled = find_encoder();
  if (encode_tiled == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(matrix.num_columns), static_cast<cuuint64_t>(matrix.num_rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(matrix.stride) * sizeof(uint16_t)};
  const cuuint32_t box[] = {dl::kStepInputs, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult result = encode_tiled(
      map, is_half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, matrix.data, sizes, strides,
      box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

int most_dense_tokens(int64_t num_outputs, int64_t num_inputs, int device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const bool has_instructions = major == 9 && minor == 0;
  if (!has_instructions || num_outputs % 8 != 0 || num_inputs % 8 != 0 || find_encoder() == nullptr) return 0;
  return plan_of(num_outputs, num_inputs, count_multiprocessors(device)).num_tiles > 0 ? dl::kMostTokens : 0;
}

cudaError_t launch_dense_linear(const Matrix& x, const Matrix& weight, DenseLinearParams params, bool is_half,
                                cudaStream_t stream) {
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  const Plan plan = plan_of(weight.num_rows, weight.num_columns, count_multiprocessors(device));
  const Variant* variant = is_half ? find_variant<__half>(plan, params.num_tokens)
                                   : find_variant<__nv_bfloat16>(plan, params.num_tokens);
  if (variant == nullptr) return cudaErrorInvalidValue;
  if (params.num_tokens == 0) return cudaSuccess;
  const void* address = reinterpret_cast<const void*>(variant->kernel);
  if (cudaError_t error = allow_shared_memory(address, variant->shared_bytes, false)) return error;
  TensorMap weight_map, x_map;
  if (cudaError_t error = encode(&weight_map, weight, is_half, plan.num_tiles * dl::kTileRows)) return error;
  if (cudaError_t error = encode(&x_map, x, is_half, variant->num_tokens)) return error;
  params.num_steps = divide_up(weight.num_columns, dl::kStepInputs);
  cudaLaunchAttribute attributes[2] = {early_launch()};
  int num_attributes = is_launched_early(stream) ? 1 : 0;
  if (plan.split > 1) {
    attributes[num_attributes].id = cudaLaunchAttributeClusterDimension;
    attributes[num_attributes++].val.clusterDim = {static_cast<unsigned>(plan.split), 1, 1};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(plan.split * divide_up(params.num_outputs, plan.num_tiles * dl::kTileRows));
  config.blockDim = dim3(variant->num_threads);
  config.dynamicSmemBytes = variant->shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  return cudaLaunchKernelEx(&config, variant->kernel, weight_map, x_map, params);
}

}  // namespace shadow
