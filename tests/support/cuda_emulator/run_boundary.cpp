// One call of the boundary's cluster kernels under emulator.h, for ctypes. UNIT_ONLY: of the unit kernel of bf16 and up to
// 8 gates, which compiles fast.
#include "shadow/boundary.cuh"

namespace {

template <typename T, int kGateTiles>
bool run(shadow::BoundaryParams params, int num_warps, bool is_unit, int num_clusters, uint32_t seed) {
  using S = shadow::Shape<kGateTiles, 1>;
  const int bytes = is_unit ? shadow::unit_shared_bytes<T, S>(num_warps, params.num_blocks)
                            : shadow::shared_bytes<T, S>(num_warps, params.num_blocks, true);
  if (bytes == 0) return false;
  params.num_clusters = is_unit ? 2 * params.num_tiles : num_clusters;
  auto kernel = [&] {
#ifdef UNIT_ONLY
    shadow::boundary_unit_kernel<T, kGateTiles, 1>(params);
#else
    is_unit ? shadow::boundary_unit_kernel<T, kGateTiles, 1>(params)
            : shadow::boundary_fused_kernel<T, kGateTiles, 1>(params);
#endif
  };
  return emulator::launch(kernel, params.num_clusters, params.num_blocks, num_warps, bytes, seed);
}

template <typename T>
bool run(const shadow::BoundaryParams& params, int num_warps, bool is_unit, int num_clusters,
         uint32_t seed) {
#ifndef UNIT_ONLY
  if (params.gate_size > 8) return run<T, 2>(params, num_warps, is_unit, num_clusters, seed);
#endif
  return run<T, 1>(params, num_warps, is_unit, num_clusters, seed);
}

}  // namespace

// Returns whether it ran to its end: no deadlock, nothing on its way to a block that has ended.
extern "C" bool run_boundary(const shadow::BoundaryParams* params, int data_type, int num_warps,
                             bool is_unit, int num_clusters, uint32_t seed) {
  switch (data_type) {
    case 0:
      return run<__nv_bfloat16>(*params, num_warps, is_unit, num_clusters, seed);
#ifndef UNIT_ONLY
    case 1:
      return run<__half>(*params, num_warps, is_unit, num_clusters, seed);
    case 2:
      return run<float>(*params, num_warps, is_unit, num_clusters, seed);
#endif
  }
  return false;
}
