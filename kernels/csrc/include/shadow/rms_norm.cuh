// The RMS norm behind the boundary: residual = hidden + residual, hidden = rms_norm(residual) * weight, for rows of whole
// groups of eight columns. The token kernel does the same at its end; both add up a row's squares in one order, so that a
// row without an adapter has the same bits in every batch:
//
//     the two of a pair of columns; 2, 4, ... 32 pairs, neighbours first (a slice); slices 32 apart, in turn; the 32
//     sums that this leaves, neighbours first.
//
// A slice that a row does not have adds zero, which changes no bit.
#pragma once

#include "shadow/cluster.cuh"
#include "shadow/fast_math.cuh"
#include "shadow/mma.cuh"
#include "shadow/rms_norm_params.h"

namespace shadow {

constexpr int kRmsSliceOctets = 8;  // a slice has 64 columns
constexpr int kRmsThreads = 512;     // the most of a block, which has a row

// Over 2 ** (kLast - kFirst) lanes that lie 2 ** kFirst apart: neighbours first.
template <int kFirst, int kLast>
__device__ inline float sum_neighbours(float x) {
#pragma unroll
  for (int mask = 1 << kFirst; mask < 1 << kLast; mask *= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}

__device__ inline float square_of(float first, float second) { return fmaf(second, second, first * first); }

// What a row is multiplied by; `slices` are its slices' sums, kMost at most, and the result is the same for all lanes. No
// loop: the compiler would make more code of it than a row needs.
template <int kMost>
__device__ inline float rms_factor(const float* slices, int num_slices, int hidden_size, float eps) {
  const int lane = threadIdx.x % 32;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kMost; i += 32) {
    if (i + lane < num_slices) total += slices[i + lane];
  }
  return rsqrtf(fmaf(sum_neighbours<0, 5>(total), reciprocal(static_cast<float>(hidden_size)), eps));
}

template <typename T>
struct RmsNormRow {
  Octet<T> hidden, residual, weight;
  float h[8];

  // Adds up, and returns the lane's part of its slice's squares.
  __device__ float add() {
    float more[8];
    unpack(hidden, h);
    unpack(residual, more);
#pragma unroll
    for (int i = 0; i < 8; ++i) h[i] += more[i];
    const float low = square_of(h[0], h[1]) + square_of(h[2], h[3]);
    return low + (square_of(h[4], h[5]) + square_of(h[6], h[7]));
  }

  __device__ void scale(float factor) {
    float weights[8], columns[8];
    pack(h, residual);
    unpack(weight, weights);
#pragma unroll
    for (int i = 0; i < 8; ++i) columns[i] = h[i] * factor * weights[i];
    pack(columns, hidden);
  }
};

#ifndef SHADOW_EMULATED
extern __shared__ __align__(16) char shared_memory[];
#endif

// A row a block; kOctets: the most that a thread has. Shared memory: a float for each of a block's slices.
template <typename T, int kOctets>
__global__ void __launch_bounds__(kRmsThreads) add_rms_norm_kernel(const __grid_constant__ RmsNormParams p) {
  float* slices = reinterpret_cast<float*>(shared_memory);
  const int num_octets = p.hidden_size / 8, row = blockIdx.x;
  auto* hidden = static_cast<Octet<T>*>(p.hidden) + row * (p.hidden_stride / 8);
  auto* residual = static_cast<Octet<T>*>(p.residual) + row * (p.residual_stride / 8);
  RmsNormRow<T> parts[kOctets];
#pragma unroll
  for (int i = 0; i < kOctets; ++i) {
    const int octet = threadIdx.x + i * blockDim.x;
    if (octet >= num_octets) continue;
    parts[i].weight = static_cast<const Octet<T>*>(p.weight)[octet];
    prefetch(residual + octet);
  }
  wait_for_previous_kernel();
  release_next_kernel();
#pragma unroll
  for (int i = 0; i < kOctets; ++i) {
    const int octet = threadIdx.x + i * blockDim.x;
    if (octet < num_octets) parts[i].hidden = hidden[octet], parts[i].residual = residual[octet];
  }
#pragma unroll
  for (int i = 0; i < kOctets; ++i) {
    const int octet = threadIdx.x + i * blockDim.x;
    const float sum = sum_neighbours<0, 3>(octet < num_octets ? parts[i].add() : 0.0f);
    if (threadIdx.x % kRmsSliceOctets == 0) slices[octet / kRmsSliceOctets] = sum;
  }
  __syncthreads();
  const int num_slices = kOctets * blockDim.x / kRmsSliceOctets;
  const float factor = rms_factor<kOctets * kRmsThreads / kRmsSliceOctets>(slices, num_slices, p.hidden_size, p.eps);
#pragma unroll
  for (int i = 0; i < kOctets; ++i) {
    const int octet = threadIdx.x + i * blockDim.x;
    if (octet >= num_octets) continue;
    parts[i].scale(factor);
    residual[octet] = parts[i].residual, hidden[octet] = parts[i].hidden;
  }
}

}  // namespace shadow
