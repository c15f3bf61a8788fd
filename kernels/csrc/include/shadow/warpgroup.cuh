// Hopper's warpgroup products and tensor copies, as thin names over PTX. The tensor cores of a multiprocessor read both
// operands from shared memory, where a copy has laid out rows of 64 numbers (128 bytes) in the 128-byte swizzle: the eight
// pieces of 16 bytes of row r stand at their number XOR r % 8. Tiles begin on 1,024 bytes.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "shadow/cluster.cuh"

namespace shadow {

using TensorMap = CUtensorMap;

constexpr int kWarpgroup = 128;  // threads, whose first warp's number is a multiple of 4

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Weights come once; what all blocks read stays.
enum class Reuse : uint64_t { kNone = 0x12F0000000000000, kAll = 0x14F0000000000000 };

// Starts copying the map's box that begins at (row, column) to shared memory; it counts its whole size down on the barrier, and what lies
// outside of the tensor comes as zeros.
__device__ inline void copy_box(void* target, const TensorMap& map, int row, int column, uint64_t* barrier,
                                Reuse reuse) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(target)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(reuse)
      : "memory");
}

// Copies from this block's shared memory to another's and counts the bytes down on that block's barrier; all on 16 bytes.
__device__ inline void send_bytes(uint32_t target, const void* source, int num_bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
      "r"(shared_address(source)), "r"(num_bytes), "r"(barrier)
      : "memory");
}

// What this thread has stored to shared memory is seen by copies that are started behind the next barrier.
__device__ inline void publish_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// A barrier of the block's first num_threads threads, whole warps.
__device__ inline void sync_first_threads(int num_threads) {
  asm volatile("bar.sync 1, %0;" ::"r"(num_threads) : "memory");
}

// An operand of 16 inputs, the step-th of a tile's four.
__device__ inline uint64_t operand_of(const void* tile, int step) {
  constexpr uint64_t kSwizzle = uint64_t{1} << 62, kRowGroup = uint64_t{1024 >> 4} << 32, kUnused = 1 << 16;
  return kSwizzle | kRowGroup | kUnused | ((shared_address(tile) & 0x3ffff) >> 4) + 2 * step;
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all committed groups but the last kLeft are through.
template <int kLeft>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// The compiler takes the sums from their registers no earlier than here.
template <int kCount>
__device__ inline void hold_sums(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define SHADOW_SUM_NAMES_4 "%0, %1, %2, %3"
#define SHADOW_SUM_NAMES_8 SHADOW_SUM_NAMES_4 ", %4, %5, %6, %7"
#define SHADOW_SUM_NAMES_16 SHADOW_SUM_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SHADOW_SUM_NAMES_32 \
  SHADOW_SUM_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SHADOW_SUM_NAMES_64                                                                                \
  SHADOW_SUM_NAMES_32                                                                                      \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SHADOW_SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SHADOW_SUMS_8(i) SHADOW_SUMS_4(i), SHADOW_SUMS_4(i + 4)
#define SHADOW_SUMS_16(i) SHADOW_SUMS_8(i), SHADOW_SUMS_8(i + 8)
#define SHADOW_SUMS_32(i) SHADOW_SUMS_16(i), SHADOW_SUMS_16(i + 16)
#define SHADOW_SUMS_64(i) SHADOW_SUMS_32(i), SHADOW_SUMS_32(i + 32)

// sums += rows x columns for 64 rows, the instruction's number of columns and 16 inputs. Lane 4 g + t of the warpgroup's warp w has in
// sums[4 j + 2 h + i] row 16 w + 8 h + g, column 8 j + 2 t + i.
#define SHADOW_PRODUCT(type, name, columns, count, a, b)                                                     \
  __device__ inline void multiply_tiles(type, float(&sums)[count], uint64_t rows, uint64_t the_columns) {    \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name " {"                   \
                 SHADOW_SUM_NAMES_##count "}, %" #a ", %" #b ", 1, 1, 1, 0, 0;"                                \
                 : SHADOW_SUMS_##count(0)                                                                    \
                 : "l"(rows), "l"(the_columns));                                                              \
  }
#define SHADOW_PRODUCTS(type, name)            \
  SHADOW_PRODUCT(type, name, 8, 4, 4, 5)       \
  SHADOW_PRODUCT(type, name, 16, 8, 8, 9)      \
  SHADOW_PRODUCT(type, name, 32, 16, 16, 17)   \
  SHADOW_PRODUCT(type, name, 64, 32, 32, 33)   \
  SHADOW_PRODUCT(type, name, 128, 64, 64, 65)

SHADOW_PRODUCTS(__nv_bfloat16, "bf16")
SHADOW_PRODUCTS(__half, "f16")

#undef SHADOW_PRODUCTS
#undef SHADOW_PRODUCT
#undef SHADOW_SUMS_64
#undef SHADOW_SUMS_32
#undef SHADOW_SUMS_16
#undef SHADOW_SUMS_8
#undef SHADOW_SUMS_4
#undef SHADOW_SUM_NAMES_64
#undef SHADOW_SUM_NAMES_32
#undef SHADOW_SUM_NAMES_16
#undef SHADOW_SUM_NAMES_8
#undef SHADOW_SUM_NAMES_4

#endif  // elsewhere nothing is launched that would use them

}  // namespace shadow
