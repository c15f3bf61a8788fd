// Launches of the dense_linear kernels.
#include "dense_linear.h"

#include <cuda.h>

#include <array>
#include <map>
#include <mutex>

#include "launch.h"
#include "shadow/dense_linear.cuh"

namespace shadow {
namespace {

namespace dl = dense_linear;
using Kernel = void (*)(TensorMap, TensorMap, DenseLinearParams);

constexpr int kLeastSteps = 4;  // of 64 inputs, a block

// A kernel and what it is cut for: steps of up to num_tokens tokens, num_outputs a cluster of `split` blocks.
struct Variant {
  int num_tokens, num_outputs, split;
  Kernel kernel;
  int shared_bytes;
};

template <typename T, int kTokens, int kOutputs, int kSplit>
constexpr Variant variant() {
  using C = dl::Cut<kTokens, kOutputs, kSplit>;
  static_assert(C::kStages >= 3 && dl::shared_bytes<C>() <= 227 << 10);
  return {kTokens, kOutputs, kSplit, dl::dense_linear_kernel<T, C>, dl::shared_bytes<C>()};
}

constexpr int kTokenCounts[] = {8, 32, dl::kMostTokens};
constexpr int kNumCounts = sizeof(kTokenCounts) / sizeof(int);

// One cut of the weight for any step.
template <typename T, int kOutputs, int kSplit>
constexpr std::array<Variant, kNumCounts> variants() {
  return {variant<T, kTokenCounts[0], kOutputs, kSplit>(), variant<T, kTokenCounts[1], kOutputs, kSplit>(),
          variant<T, kTokenCounts[2], kOutputs, kSplit>()};
}

template <typename T>
constexpr std::array<Variant, kNumCounts> kVariants[] = {
    variants<T, 48, 1>(),  variants<T, 64, 1>(),  variants<T, 96, 1>(),  variants<T, 128, 1>(), variants<T, 152, 1>(),
    variants<T, 192, 1>(), variants<T, 224, 1>(), variants<T, 256, 1>(), variants<T, 40, 2>(),  variants<T, 64, 2>(),
    variants<T, 96, 2>(),  variants<T, 40, 4>(),  variants<T, 72, 4>(),  variants<T, 88, 4>(),  variants<T, 72, 8>()};
constexpr int kNumCuts = sizeof(kVariants<__nv_bfloat16>) / sizeof(kVariants<__nv_bfloat16>[0]);

cudaLaunchAttribute cluster_of(int num_blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(num_blocks), 1, 1};
  return attribute;
}

// How many clusters run at the same time.
int count_resident(const Variant& variant) {
  const void* address = reinterpret_cast<const void*>(variant.kernel);
  if (allow_shared_memory(address, variant.shared_bytes, false) != cudaSuccess) return 0;
  cudaLaunchAttribute attribute = cluster_of(variant.split);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(variant.split);
  config.blockDim = dim3(dl::kThreads);
  config.dynamicSmemBytes = variant.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, variant.kernel, &config)) cudaGetLastError();
  return count;
}

std::array<int, kNumCuts> count_resident() {
  std::array<int, kNumCuts> counts;
  for (int i = 0; i < kNumCuts; ++i) counts[i] = count_resident(kVariants<__nv_bfloat16>[i].back());
  return counts;
}

// On the current device.
const std::array<int, kNumCuts>& resident_clusters(int device) {
  static std::mutex mutex;
  static std::map<int, std::array<int, kNumCuts>> known;
  std::lock_guard<std::mutex> guard(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, count_resident()).first->second;
}

// Which cut a weight has, whatever the step, or -1: all of its clusters run at once, and a block reads as little as may
// be in the largest step.
int choose_cut(int64_t num_outputs, int64_t num_inputs, int device) {
  const auto& resident = resident_clusters(device);
  const int num_steps = divide_up(num_inputs, dl::kStepInputs);
  int best = -1;
  double least = 0.0;
  for (int i = 0; i < kNumCuts; ++i) {
    const Variant& one = kVariants<__nv_bfloat16>[i].back();
    if (divide_up(num_outputs, one.num_outputs) > resident[i]) continue;
    if (one.split > 1 && num_steps < one.split * kLeastSteps) continue;
    const double rows_read = static_cast<double>(one.num_outputs + one.num_tokens) / one.split;
    if (best < 0 || rows_read < least) best = i, least = rows_read;
  }
  return best;
}

const Variant* find_variant(int cut, bool is_half, int num_tokens) {
  if (cut < 0) return nullptr;
  for (const Variant& one : is_half ? kVariants<__half>[cut] : kVariants<__nv_bfloat16>[cut]) {
    if (num_tokens <= one.num_tokens) return &one;
  }
  return nullptr;
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
  return choose_cut(num_outputs, num_inputs, device) < 0 ? 0 : dl::kMostTokens;
}

cudaError_t launch_dense_linear(const Matrix& x, const Matrix& weight, DenseLinearParams params, bool is_half,
                                cudaStream_t stream) {
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  const Variant* variant =
      find_variant(choose_cut(weight.num_rows, weight.num_columns, device), is_half, params.num_tokens);
  if (variant == nullptr) return cudaErrorInvalidValue;
  if (params.num_tokens == 0) return cudaSuccess;
  const void* address = reinterpret_cast<const void*>(variant->kernel);
  if (cudaError_t error = allow_shared_memory(address, variant->shared_bytes, false)) return error;
  TensorMap weight_map, x_map;
  if (cudaError_t error = encode(&weight_map, weight, is_half, variant->num_outputs)) return error;
  if (cudaError_t error = encode(&x_map, x, is_half, variant->num_tokens)) return error;
  params.num_steps = divide_up(weight.num_columns, dl::kStepInputs);
  cudaLaunchAttribute attributes[] = {cluster_of(variant->split), early_launch()};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(variant->split * divide_up(params.num_outputs, variant->num_outputs));
  config.blockDim = dim3(dl::kThreads);
  config.dynamicSmemBytes = variant->shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = is_launched_early(stream) ? 2 : 1;
  return cudaLaunchKernelEx(&config, variant->kernel, weight_map, x_map, params);
}

}  // namespace shadow
