// Launches the boundary kernels: picks the instantiation, the cut over blocks and the launch attributes.
#include "boundary.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>

#include "launch.h"
#include "rms_norm.h"
#include "shadow/boundary.cuh"
#include "shadow/boundary_tile.cuh"
#include "shadow/boundary_token.cuh"

namespace shadow {
namespace {

constexpr int kFewestBlocks = 2;        // memcheck takes what a cluster of one sends itself for an error
constexpr int kClusterBlocks = 8;       // the most that every device with clusters schedules
constexpr int kLargeClusterBlocks = 16; // the most that this code asks for
constexpr int kMaxGates = 16, kMaxRank = 64;
constexpr int kMaxTokens = 64;          // more than that have a cluster each no longer
constexpr int kFewTokens = 2;           // so many have a large cluster each, whose blocks read less
constexpr int kTokenWarps = 8, kFewTokensWarps = 4;
constexpr int kSharedStep = 128;        // bytes; shared memory is given out in these
constexpr int kUnitWaves = 2;           // more units than that share what a cluster has loaded
constexpr int kTileShare = 5;           // eighths of the multiprocessors that full tiles have to occupy to get a block each

using Kernel = void (*)(BoundaryParams);

const void* address_of(Kernel kernel) { return reinterpret_cast<const void*>(kernel); }

// What a shape needs to run: its kernels and its sizes.
struct Instance {
  Kernel fused, unit, token, few_tokens, tile, reduce, update, inject;
  int num_items, num_projected;
  int num_warps;  // of the cluster kernels for tiles
  int (*bytes)(int num_warps, int num_blocks);
  int (*unit_bytes)(int num_blocks);
  int tile_warps;
  int (*kept_steps)(int hidden_size, int num_bytes);
  int (*tile_bytes)(int kept_steps);
};

// None for large ranks, whose sums do not fit in place of update_in.
template <typename T, int kGateTiles, int kRankTiles>
Kernel unit_kernel_of() {
  if constexpr (kRankTiles == 1) return boundary_unit_kernel<T, kGateTiles, kRankTiles>;
  return nullptr;
}

template <typename T, int kGateTiles, int kRankTiles, int kWarps, int kBlocks>
Kernel token_kernel_of() {
  if constexpr (std::is_same_v<T, __nv_bfloat16> && kGateTiles == 1 && kRankTiles == 1) {
    return boundary_token_kernel<kWarps, kBlocks>;
  }
  return nullptr;
}

template <typename T, int kGateTiles, int kRankTiles>
Instance instance_of() {
  using S = Shape<kGateTiles, kRankTiles>;
  return {boundary_fused_kernel<T, kGateTiles, kRankTiles>,
          unit_kernel_of<T, kGateTiles, kRankTiles>(),
          token_kernel_of<T, kGateTiles, kRankTiles, kTokenWarps, kClusterBlocks>(),
          token_kernel_of<T, kGateTiles, kRankTiles, kFewTokensWarps, kLargeClusterBlocks>(),
          boundary_tile_kernel<T, kGateTiles, kRankTiles>,
          boundary_part_kernel<T, kGateTiles, kRankTiles, Part::kReduce>,
          boundary_part_kernel<T, kGateTiles, kRankTiles, Part::kUpdate>,
          boundary_part_kernel<T, kGateTiles, kRankTiles, Part::kInject>,
          S::kItems,
          S::kProjected,
          cluster_warps<T, S>(),
          shared_bytes<T, S>,
          unit_shared_bytes<T, S>,
          tile_warps<T, S>(),
          tile_kept_steps<T, S>,
          tile_shared_bytes<T, S>};
}

template <typename T>
Instance instance_of(int gate_size, int rank) {
  if (gate_size <= 8) return rank <= 16 ? instance_of<T, 1, 1>() : instance_of<T, 1, 4>();
  return rank <= 16 ? instance_of<T, 2, 1>() : instance_of<T, 2, 4>();
}

Instance find_instance(DataType type, int gate_size, int rank) {
  switch (type) {
    case DataType::kBFloat16:
      return instance_of<__nv_bfloat16>(gate_size, rank);
    case DataType::kFloat16:
      return instance_of<__half>(gate_size, rank);
    default:
      return instance_of<float>(gate_size, rank);
  }
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  cudaDeviceGetAttribute(&value, name, device);
  return value;
}

// Of the kernel for single tokens. Halves the blocks while each keeps few warps: small models need fewer exchanges.
int token_blocks(int num_slices) {
  int blocks = kClusterBlocks;
  while (blocks > kFewestBlocks && divide_up(num_slices, blocks / 2) <= kTokenWarps / 2) blocks /= 2;
  return blocks;
}

// Everything of a cluster launch but its size; `attributes` is storage for two.
cudaLaunchConfig_t cluster_config(int num_blocks, int num_warps, int shared_bytes,
                                  cudaLaunchAttribute* attributes) {
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = num_blocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1] = early_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(num_blocks);
  config.blockDim = dim3(32 * num_warps);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = attributes;
  config.numAttrs = 1;
  return config;
}

// Returns how many clusters of a kernel run at the same time, 0 where it does not fit the device.
int count_resident(Kernel kernel, int num_blocks, int num_warps, int bytes) {
  if (allow_shared_memory(address_of(kernel), bytes, true) != cudaSuccess) return 0;
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = cluster_config(num_blocks, num_warps, bytes, attributes);
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, kernel, &config)) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

ClusterPlan plan_tiles(Kernel kernel, int num_warps, int num_blocks, int bytes, int most_bytes) {
  ClusterPlan plan = {num_warps, num_blocks, bytes};
  if (kernel == nullptr || bytes == 0 || bytes > most_bytes) return {};
  plan.resident = count_resident(kernel, num_blocks, num_warps, bytes);
  return plan;
}

// The least shared memory of a block of which a multiprocessor holds so many and no more.
int bytes_for_at_most(int num_blocks, int device) {
  const int bytes = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) / (num_blocks + 1);
  return (bytes - kReservedShared) / kSharedStep * kSharedStep + kSharedStep;
}

// A device puts up to three clusters on the same multiprocessors while others are idle, where each takes half as long
// again. So blocks ask for more shared memory than they use.
TokenPlans plan_tokens(Kernel kernel, int num_slices, int num_blocks, int max_warps, int device) {
  const int num_warps = divide_up(num_slices, num_blocks);
  if (kernel == nullptr || num_warps > max_warps) return {};
  const int used = token_shared_bytes(num_warps, num_blocks);
  TokenPlans plans;
  for (int i = 0; i < kDensities; ++i) {
    const int bytes = i + 1 < kDensities ? std::max(used, bytes_for_at_most(i + 1, device)) : used;
    plans[i] = {num_warps, num_blocks, bytes, count_resident(kernel, num_blocks, num_warps, bytes)};
  }
  return plans;
}

// The least dense one that runs all tokens at the same time, if any does.
const ClusterPlan& pick_density(const TokenPlans& plans, int num_tokens) {
  const auto fits = [num_tokens](const ClusterPlan& plan) { return plan.resident >= num_tokens; };
  const auto found = std::find_if(plans.begin(), plans.end(), fits);
  return found == plans.end() ? plans.back() : *found;
}

// plan.fused.resident is 0 where no cut fits the device.
BoundaryPlan plan_fused(const Instance& instance, int num_slices, int device) {
  BoundaryPlan plan = {};
  plan.is_fused = plan.is_supported = true;
  const int num_warps = instance.num_warps;
  const int num_blocks = std::max(kFewestBlocks, divide_up(num_slices, num_warps));
  if (num_blocks > kLargeClusterBlocks) return plan;
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  plan.fused = plan_tiles(instance.fused, num_warps, num_blocks,
                          instance.bytes(num_warps, num_blocks), most);
  plan.units =
      plan_tiles(instance.unit, num_warps, num_blocks, instance.unit_bytes(num_blocks), most);
  const int num_token_blocks = token_blocks(num_slices);
  plan.tokens = plan_tokens(instance.token, num_slices, num_token_blocks, kTokenWarps, device);
  if (num_token_blocks == kClusterBlocks) {
    plan.few_tokens =
        plan_tokens(instance.few_tokens, num_slices, kLargeClusterBlocks, kFewTokensWarps, device);
  }
  return plan;
}

TilePlan plan_tile_blocks(const Instance& instance, int hidden_size, int device) {
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int kept_steps = instance.kept_steps(hidden_size, most);
  if (kept_steps < 0) return {};
  const int num_multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  return {instance.tile_warps, kept_steps, instance.tile_bytes(kept_steps),
          divide_up(kTileTokens * kTileShare * num_multiprocessors, 8)};
}

// Whether the bytes between slots fit the 32 bits that the token kernel counts them in; those between rows do where they
// are wide (binding.cpp).
bool has_near_slots(const BoundaryParams& p) {
  constexpr int64_t kMost = (int64_t{1} << 32) / static_cast<int64_t>(sizeof(__nv_bfloat16));
  const int64_t strides[] = {
      p.norm_weight.slot_stride, p.norm_bias.slot_stride,     p.update_in.slot_stride,
      p.update_out.slot_stride,  p.update_in_bias.slot_stride, p.update_out_bias.slot_stride,
      p.down.slot_stride,        p.up.slot_stride};
  return std::all_of(std::begin(strides), std::end(strides),
                     [](int64_t stride) { return 0 <= stride && stride < kMost; });
}

// What one cluster kernel is launched with.
struct ClusterLaunch {
  Kernel kernel;
  int num_clusters;
  const ClusterPlan& plan;
};

ClusterLaunch choose_launch(const Instance& instance, const BoundaryParams& params,
                            const BoundaryPlan& plan) {
  const int num_tokens = params.num_tokens, num_units = 2 * params.num_tiles;
  if (num_tokens <= kMaxTokens && has_near_slots(params)) {
    if (num_tokens <= kFewTokens && plan.few_tokens.back().resident > 0) {
      return {instance.few_tokens, num_tokens, pick_density(plan.few_tokens, num_tokens)};
    }
    if (plan.tokens.back().resident > 0) {
      return {instance.token, num_tokens, pick_density(plan.tokens, num_tokens)};
    }
  }
  if (num_units <= kUnitWaves * plan.units.resident) return {instance.unit, num_units, plan.units};
  const int resident = plan.fused.resident;
  return {instance.fused, params.num_tiles <= 2 * resident ? params.num_tiles : resident, plan.fused};
}

bool has_single_tokens(const Instance& instance, const ClusterLaunch& launch) {
  return launch.kernel == instance.token || launch.kernel == instance.few_tokens;
}

// The kernels for single tokens end with the norm themselves; has_norm becomes whether it has yet to follow.
cudaError_t launch_fused(const Instance& instance, BoundaryParams& params, const BoundaryPlan& plan,
                         bool& has_norm, cudaStream_t stream) {
  const ClusterLaunch launch = choose_launch(instance, params, plan);
  if (has_single_tokens(instance, launch)) has_norm = false;
  cudaLaunchAttribute attributes[2];
  const int num_blocks = launch.plan.num_blocks;
  cudaLaunchConfig_t config =
      cluster_config(num_blocks, launch.plan.num_warps, launch.plan.shared_bytes, attributes);
  params.num_blocks = num_blocks, params.num_clusters = launch.num_clusters;
  config.gridDim = dim3(launch.num_clusters * num_blocks);
  config.stream = stream;
  config.numAttrs = is_capturing(stream) ? 2 : 1;
  return cudaLaunchKernelEx(&config, launch.kernel, params);
}

cudaError_t launch_tiles(const Instance& instance, BoundaryParams& params, const TilePlan& plan,
                         cudaStream_t stream) {
  if (cudaError_t error = allow_shared_memory(address_of(instance.tile), plan.shared_bytes, false)) return error;
  cudaLaunchAttribute attribute = early_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(params.num_tiles);
  config.blockDim = dim3(32 * plan.num_warps);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = is_capturing(stream) ? 1 : 0;
  params.kept_steps = plan.kept_steps;
  return cudaLaunchKernelEx(&config, instance.tile, params);
}

cudaError_t launch_parts(const Instance& instance, BoundaryParams& params, const PartPlan& plan,
                         cudaStream_t stream) {
  params.num_clusters = params.num_tiles;
  params.num_blocks = plan.num_blocks;
  for (Kernel kernel : {instance.reduce, instance.update, instance.inject}) {
    if (cudaError_t error = allow_shared_memory(address_of(kernel), plan.shared_bytes, false)) return error;
    kernel<<<params.num_tiles * plan.num_blocks, 32 * kPartWarps, plan.shared_bytes, stream>>>(params);
  }
  return cudaGetLastError();
}

BoundaryPlan make_plan(DataType type, int hidden_size, int gate_size, int rank, bool is_wide,
                       int device) {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  if (gate_size > kMaxGates || rank > kMaxRank || major < 8) return {};
  const Instance instance = find_instance(type, gate_size, rank);
  const int num_slices = divide_up(hidden_size, kSliceColumns);
  BoundaryPlan plan = {};
  if (major >= 9 && is_wide) {
    plan = plan_fused(instance, num_slices, device);
    plan.tiles = plan_tile_blocks(instance, hidden_size, device);
    if (plan.fused.resident > 0) return plan;
    plan.is_fused = false;
  }
  plan.parts = {divide_up(num_slices, kPartWarps), instance.bytes(kPartWarps, 0),
                instance.num_items, instance.num_projected};
  plan.is_supported =
      plan.parts.shared_bytes <= attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return plan;
}

}  // namespace

BoundaryPlan plan_boundary(DataType type, int hidden_size, int gate_size, int rank, bool is_wide,
                           int device) {
  static std::mutex mutex;
  static std::map<std::tuple<DataType, int, int, int, bool, int>, BoundaryPlan> known;
  std::lock_guard<std::mutex> guard(mutex);
  const auto [entry, is_new] =
      known.try_emplace({type, hidden_size, gate_size, rank, is_wide, device});
  if (is_new) entry->second = make_plan(type, hidden_size, gate_size, rank, is_wide, device);
  return entry->second;
}

int64_t reduced_floats(const BoundaryPlan& plan) {
  return plan.is_fused ? 0 : 2 * static_cast<int64_t>(plan.parts.num_blocks) * plan.parts.num_items;
}

int64_t projected_floats(const BoundaryPlan& plan) {
  return plan.is_fused ? 0
                       : 2 * static_cast<int64_t>(plan.parts.num_blocks) * plan.parts.num_projected;
}

cudaError_t launch_boundary(BoundaryParams params, const BoundaryPlan& plan, DataType type,
                            cudaStream_t stream) {
  const Instance instance = find_instance(type, params.gate_size, params.rank);
  bool has_norm = params.rms_weight != nullptr;
  cudaError_t error;
  if (plan.tiles.num_warps > 0 && params.num_tokens >= plan.tiles.fewest_tokens) {
    error = launch_tiles(instance, params, plan.tiles, stream);
  } else if (plan.is_fused) {
    error = launch_fused(instance, params, plan, has_norm, stream);
  } else {
    error = launch_parts(instance, params, plan.parts, stream);
  }
  if (error || !has_norm) return error;
  const RmsNormParams norm = {params.hidden,        params.residual,        params.rms_weight,
                              params.hidden_stride, params.residual_stride, params.rms_eps,
                              params.num_tokens,    params.hidden_size};
  return launch_add_rms_norm(norm, type, stream);
}

}  // namespace shadow
