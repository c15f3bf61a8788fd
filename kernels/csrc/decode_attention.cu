// Launches of the kernel of decode_attention.
#include "decode_attention.h"

#include "launch.h"
#include "shadow/decode_attention.cuh"

namespace shadow {
namespace {

namespace da = decode_attention;

// Two steps of a block's warps: for fewer tokens a second block and their meeting cost as much as they save.
constexpr int kLeastPiece = 2 * da::kStepTokens;

struct Kernel {
  void (*function)(DecodeAttentionParams);
  int shared_bytes;
};

template <typename T>
Kernel find_kernel(int head_size) {
  switch (head_size) {
    case 64:
      return {decode_attention_kernel<T, 64>, sizeof(da::Shared<64>)};
    case 128:
      return {decode_attention_kernel<T, 128>, sizeof(da::Shared<128>)};
    default:
      return {nullptr, 0};
  }
}

Kernel find_kernel(int head_size, bool is_half) {
  return is_half ? find_kernel<__half>(head_size) : find_kernel<__nv_bfloat16>(head_size);
}

// Of the kernel, on the current device; 0 where CUDA does not say.
int count_blocks_at_once(const Kernel& kernel) {
  int device = 0, num_multiprocessors = 0, blocks = 0;
  const bool is_known =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel.function, da::kThreads, kernel.shared_bytes) ==
          cudaSuccess;
  return is_known ? blocks * num_multiprocessors : 0;
}

}  // namespace

int spare_attention_pieces(int head_size, int num_kv_heads, bool is_half) {
  const Kernel kernel = find_kernel(head_size, is_half);
  if (kernel.function == nullptr) return 0;
  const int blocks = count_blocks_at_once(kernel);
  return blocks == 0 ? 0 : blocks / num_kv_heads > 1 ? blocks / num_kv_heads : 1;
}

int64_t partial_attention_floats(int spare_pieces, int num_kv_heads, int group_size, int head_size) {
  return int64_t{2} * spare_pieces * num_kv_heads * da::partial_floats(group_size, head_size);
}

cudaError_t launch_decode_attention(DecodeAttentionParams params, int head_size, bool is_half, cudaStream_t stream) {
  const Kernel kernel = find_kernel(head_size, is_half);
  if (kernel.function == nullptr) return cudaErrorInvalidValue;
  if (params.num_sequences == 0) return cudaSuccess;
  params.least_piece = kLeastPiece;
  cudaLaunchAttribute attribute = early_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((params.num_sequences + params.spare_pieces) * params.num_kv_heads);
  config.blockDim = dim3(da::kThreads);
  config.dynamicSmemBytes = kernel.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = is_launched_early(stream) ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel.function, params);
}

}  // namespace shadow
