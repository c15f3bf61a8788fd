// One call of the boundary's kernels under emulator.h, for ctypes. With ONLY of one kernel for bf16 and up to 8
// gates alone, which compiles fast.
#include "shadow/boundary.cuh"
#include "shadow/boundary_tile.cuh"
#include "shadow/boundary_token.cuh"
#include "shadow/rms_norm.cuh"

#include <cmath>
#include <vector>

namespace {

enum KernelIndex { kRange, kUnit, kToken, kParts, kTile };

// Rows that the kernel in front writes: until it has ended they hold NaN, and nobody else may write them.
class LateRows {
 public:
  LateRows(void* data, int num_tokens, int64_t stride, int data_type)
      : data_(static_cast<char*>(data)), rows_(num_tokens * stride * (data_type == 2 ? 4 : 2)) {}

  void hide() {
    if (data_ == nullptr) return;
    std::memcpy(rows_.data(), data_, rows_.size());
    std::memset(data_, 0xff, rows_.size());
  }

  // Returns whether nobody has written them.
  bool show() {
    if (data_ == nullptr) return true;
    const bool is_hidden = std::all_of(data_, data_ + rows_.size(), [](char byte) { return byte == static_cast<char>(0xff); });
    std::memcpy(data_, rows_.data(), rows_.size());
    return is_hidden;
  }

 private:
  char* data_;
  std::vector<char> rows_;
};

// Returns whether `launch` ran to its end and wrote none of the rows before the kernel in front had written them.
template <typename Launch>
bool run_behind(std::vector<LateRows> late, Launch launch) {
  bool is_intact = true;
  emulator::previous.start = [&] {
    for (LateRows& rows : late) rows.hide();
  };
  emulator::previous.end = [&] {
    for (LateRows& rows : late) is_intact = rows.show() && is_intact;
  };
  const bool has_ended = launch();
  emulator::previous = {};
  return has_ended && is_intact;
}

bool run_token(shadow::BoundaryParams params, uint32_t seed) {
  const int num_slices = (params.hidden_size + shadow::kSliceColumns - 1) / shadow::kSliceColumns;
  const int num_warps = (num_slices + params.num_blocks - 1) / params.num_blocks;
  const int bytes = shadow::token_shared_bytes(num_warps, params.num_blocks);
  auto kernel = [&] {
    params.num_blocks > 8 ? shadow::boundary_token_kernel<4, 16>(params)
                          : shadow::boundary_token_kernel<8, 8>(params);
  };
  return emulator::launch(kernel, params.num_tokens, params.num_blocks, num_warps, bytes, seed);
}

template <typename T, int kGateTiles>
bool run_unit(shadow::BoundaryParams params, uint32_t seed) {
  using S = shadow::Shape<kGateTiles, 1>;
  const int bytes = shadow::unit_shared_bytes<T, S>(params.num_blocks);
  if (bytes == 0) return false;
  params.num_clusters = 2 * params.num_tiles;
  auto kernel = [&] { shadow::boundary_unit_kernel<T, kGateTiles, 1>(params); };
  return emulator::launch(kernel, params.num_clusters, params.num_blocks,
                          shadow::cluster_warps<T, S>(), bytes, seed);
}

template <typename T, int kGateTiles>
bool run_range(shadow::BoundaryParams params, int num_clusters, uint32_t seed) {
  using S = shadow::Shape<kGateTiles, 1>;
  const int num_warps = shadow::cluster_warps<T, S>();
  const int bytes = shadow::shared_bytes<T, S>(num_warps, params.num_blocks);
  params.num_clusters = num_clusters;
  auto kernel = [&] { shadow::boundary_fused_kernel<T, kGateTiles, 1>(params); };
  return emulator::launch(kernel, num_clusters, params.num_blocks, num_warps, bytes, seed);
}

template <typename T, int kGateTiles>
bool run_tile(const shadow::BoundaryParams& params, uint32_t seed) {
  using S = shadow::Shape<kGateTiles, 1>;
  const int bytes = shadow::tile_shared_bytes<T, S>(params.kept_steps);
  auto kernel = [&] { shadow::boundary_tile_kernel<T, kGateTiles, 1>(params); };
  return emulator::launch(kernel, params.num_tiles, 1, shadow::tile_warps<T, S>(), bytes, seed);
}

// The three separate kernels, one behind the other, with scratch that holds NaN.
template <typename T, int kGateTiles>
bool run_parts(shadow::BoundaryParams params, uint32_t seed) {
  using S = shadow::Shape<kGateTiles, 1>;
  const int num_warps = shadow::kPartWarps, columns = num_warps * shadow::kSliceColumns;
  params.num_clusters = params.num_tiles;
  params.num_blocks = (params.hidden_size + columns - 1) / columns;
  const size_t num_parts = 2 * static_cast<size_t>(params.num_tiles) * params.num_blocks;
  std::vector<float> reduced(num_parts * S::kItems, NAN), projected(num_parts * S::kProjected, NAN);
  params.reduced = reduced.data(), params.projected = projected.data();
  const int bytes = shadow::shared_bytes<T, S>(num_warps, 0);
  auto run_part = [&](auto kernel) {
    auto part = [&] { kernel(params); };
    return emulator::launch(part, params.num_tiles, params.num_blocks, num_warps, bytes, seed);
  };
  using shadow::Part;
  return run_part(shadow::boundary_part_kernel<T, kGateTiles, 1, Part::kReduce>) &&
         run_part(shadow::boundary_part_kernel<T, kGateTiles, 1, Part::kUpdate>) &&
         run_part(shadow::boundary_part_kernel<T, kGateTiles, 1, Part::kInject>);
}

template <typename T, int kGateTiles>
bool run(const shadow::BoundaryParams& params, int kernel, int num_clusters, uint32_t seed) {
  if (kernel == kParts) return run_parts<T, kGateTiles>(params, seed);
  if (kernel == kTile) return run_tile<T, kGateTiles>(params, seed);
  return kernel == kUnit ? run_unit<T, kGateTiles>(params, seed)
                         : run_range<T, kGateTiles>(params, num_clusters, seed);
}

#ifndef ONLY
template <typename T>
bool run(const shadow::BoundaryParams& params, int kernel, int num_clusters, uint32_t seed) {
  return params.gate_size > 8 ? run<T, 2>(params, kernel, num_clusters, seed)
                              : run<T, 1>(params, kernel, num_clusters, seed);
}
#endif

template <typename T, int kOctets>
bool run_norm(const shadow::RmsNormParams& params, int num_warps, uint32_t seed) {
  const int bytes = 4 * kOctets * 32 * num_warps / shadow::kRmsSliceOctets;
  auto kernel = [&] { shadow::add_rms_norm_kernel<T, kOctets>(params); };
  return emulator::launch(kernel, params.num_tokens, 1, num_warps, bytes, seed);
}

template <typename T>
bool run_norm(const shadow::RmsNormParams& params, int num_octets, int num_warps, uint32_t seed) {
  return num_octets > 1 ? run_norm<T, 2>(params, num_warps, seed) : run_norm<T, 1>(params, num_warps, seed);
}

bool run_norm(const shadow::RmsNormParams& params, int data_type, int num_octets, int num_warps, uint32_t seed) {
#ifndef ONLY
  if (data_type == 1) return run_norm<__half>(params, num_octets, num_warps, seed);
  if (data_type == 2) return run_norm<float>(params, num_octets, num_warps, seed);
#endif
  return run_norm<__nv_bfloat16>(params, num_octets, num_warps, seed);
}

bool run(const shadow::BoundaryParams* params, int data_type, int kernel, int num_clusters, uint32_t seed) {
#ifdef ONLY
  if constexpr (ONLY == kToken) return run_token(*params, seed);
  return run<__nv_bfloat16, 1>(*params, ONLY, num_clusters, seed);
#else
  if (kernel == kToken) return run_token(*params, seed);
  switch (data_type) {
    case 0:
      return run<__nv_bfloat16>(*params, kernel, num_clusters, seed);
    case 1:
      return run<__half>(*params, kernel, num_clusters, seed);
    default:
      return run<float>(*params, kernel, num_clusters, seed);
  }
#endif
}

}  // namespace

// num_octets: of a thread, 1 or 2. Returns as run_boundary.
extern "C" bool run_add_rms_norm(const shadow::RmsNormParams* params, int data_type, int num_octets, int num_warps,
                                 uint32_t seed) {
  const int num_tokens = params->num_tokens;
  return run_behind({{params->hidden, num_tokens, params->hidden_stride, data_type},
                     {params->residual, num_tokens, params->residual_stride, data_type}},
                    [&] { return run_norm(*params, data_type, num_octets, num_warps, seed); });
}

// Returns whether it ran to its end (no deadlock, nothing on its way to a block that has ended) and wrote nothing before
// the kernel in front had ended, for which the separate kernels do not have to wait.
extern "C" bool run_boundary(const shadow::BoundaryParams* params, int data_type, int kernel,
                             int num_clusters, uint32_t seed) {
  auto launch = [&] { return run(params, data_type, kernel, num_clusters, seed); };
  if (kernel == kParts) return launch();
  const int num_tokens = params->num_tokens;
  return run_behind({{params->hidden, num_tokens, params->hidden_stride, data_type},
                     {params->residual, num_tokens, params->residual_stride, data_type},
                     {params->state, num_tokens, params->state_stride, data_type}},
                    launch);
}
