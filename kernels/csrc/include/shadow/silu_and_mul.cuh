// out = silu(x[:, :M]) * x[:, M:], eight columns a thread. It is a kernel of its own for what stands around it: the product behind
// it begins to read its weight as soon as this one has started.
#pragma once

#include "shadow/cluster.cuh"
#include "shadow/fast_math.cuh"
#include "shadow/mma.cuh"
#include "shadow/silu_and_mul_params.h"

namespace shadow {

constexpr int kSiluThreads = 256;

__device__ inline float silu(float x) {
  constexpr float kLog2E = 1.44269504f;
  return x * reciprocal(1.0f + power_of_two(-kLog2E * x));
}

template <typename T>
__global__ void __launch_bounds__(kSiluThreads) silu_and_mul_kernel(const __grid_constant__ SiluAndMulParams p) {
  const int block = blockIdx.x, row = block / p.row_blocks;
  const int octet = block % p.row_blocks * kSiluThreads + threadIdx.x;
  wait_for_previous_kernel();
  release_next_kernel();
  if (octet >= p.num_octets) return;
  const auto* x = static_cast<const Octet<T>*>(p.x) + row * (p.x_stride / 8);
  const Octet<T> gate_octet = x[octet], up_octet = x[p.num_octets + octet];
  float gate[8], up[8];
  unpack(gate_octet, gate);
  unpack(up_octet, up);
#pragma unroll
  for (int i = 0; i < 8; ++i) gate[i] = silu(gate[i]) * up[i];
  Octet<T> product;
  pack(gate, product);
  (static_cast<Octet<T>*>(p.out) + row * (p.out_stride / 8))[octet] = product;
}

}  // namespace shadow
