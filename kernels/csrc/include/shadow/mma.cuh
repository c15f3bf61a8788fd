// Tensor-core products of fp32 activations with model weights, exact to the accuracy that the model's dtype asks for.
//
// The one instruction is mma.m16n8k16 on bf16 with fp32 sums. A number that bf16 does not hold is cut into bf16 parts
// whose sum it is; `Split` says how many parts each side has and which products of parts count (small ones first):
//
//     bf16   weight 1 part            activation 2 parts, 16 bits
//     fp16   weight 2 parts, exact    activation 2 parts, 16 bits
//     fp32   weight 3 parts, exact    activation 3 parts, exact
//
// Lanes: "quad" is lane % 4, "row" is lane / 4. Within 32 columns a lane of quad q holds columns 8 q to 8 q + 7 of its
// row, so that global and shared memory are read 16 bytes at a time; the order in which a product walks its inner
// dimension does not matter as long as both operands agree.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "shadow/tensor_core.cuh"

namespace shadow {

template <typename T>
struct Split;

template <>
struct Split<__nv_bfloat16> {
  static constexpr int kWeightParts = 1, kActivationParts = 2;
};

template <>
struct Split<__half> {
  static constexpr int kWeightParts = 2, kActivationParts = 2;
};

template <>
struct Split<float> {
  static constexpr int kWeightParts = 3, kActivationParts = 3;
};

__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(float x) { return x; }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline __half from_float(float x) { return __float2half_rn(x); }
template <>
__device__ inline float from_float(float x) { return x; }

// Eight neighbouring columns of a row, as they lie in memory.
template <typename T>
struct alignas(16) Octet {
  uint32_t word[2 * sizeof(T)];
};

// Four of them.
template <typename T>
struct alignas(4 * sizeof(T)) Quartet {
  uint32_t word[sizeof(T)];
};

// Two neighbouring columns of a row.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T column[2];
};

__device__ inline void unpack(const Octet<__nv_bfloat16>& octet, float (&columns)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    columns[2 * i] = __uint_as_float(octet.word[i] << 16);
    columns[2 * i + 1] = __uint_as_float(octet.word[i] & 0xffff0000u);
  }
}

__device__ inline void unpack(const Octet<__half>& octet, float (&columns)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&octet.word[i]));
    columns[2 * i] = pair.x, columns[2 * i + 1] = pair.y;
  }
}

__device__ inline void unpack(const Octet<float>& octet, float (&columns)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) columns[i] = __uint_as_float(octet.word[i]);
}

__device__ inline void pack(const float (&columns)[8], Octet<__nv_bfloat16>& octet) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(columns[2 * i], columns[2 * i + 1]);
    octet.word[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
}

__device__ inline void pack(const float (&columns)[8], Octet<__half>& octet) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __half2 pair = __floats2half2_rn(columns[2 * i], columns[2 * i + 1]);
    octet.word[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
}

__device__ inline void pack(const float (&columns)[8], Octet<float>& octet) {
#pragma unroll
  for (int i = 0; i < 8; ++i) octet.word[i] = __float_as_uint(columns[i]);
}

// Cuts a pair into kParts words of two bf16 whose sum it is; `first` is the low half of a word.
template <int kParts>
__device__ inline void split(float first, float second, uint32_t (&words)[kParts]) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const __nv_bfloat162 rounded = __floats2bfloat162_rn(first, second);
    words[part] = *reinterpret_cast<const uint32_t*>(&rounded);
    first -= __uint_as_float(words[part] << 16);
    second -= __uint_as_float(words[part] & 0xffff0000u);
  }
}

// words[part][i] holds columns 2 i and 2 i + 1.
template <int kParts>
__device__ inline void split_columns(const float (&columns)[8], uint32_t (&words)[kParts][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t parts[kParts];
    split(columns[2 * i], columns[2 * i + 1], parts);
#pragma unroll
    for (int part = 0; part < kParts; ++part) words[part][i] = parts[part];
  }
}

template <typename T>
__device__ inline void split_weights(const Octet<T>& octet,
                                     uint32_t (&words)[Split<T>::kWeightParts][4]) {
  if constexpr (Split<T>::kWeightParts == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[0][i] = octet.word[i];
  } else {
    float columns[8];
    unpack(octet, columns);
    split_columns(columns, words);
  }
}

__device__ inline void unpack(const Quartet<__half>& quartet, float (&columns)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&quartet.word[i]));
    columns[2 * i] = pair.x, columns[2 * i + 1] = pair.y;
  }
}

__device__ inline void unpack(const Quartet<float>& quartet, float (&columns)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) columns[i] = __uint_as_float(quartet.word[i]);
}

// words[part][j] holds column j of two rows, the order in which the right operand's register wants them.
template <typename T>
__device__ inline void pair_quartets(const Quartet<T>& first, const Quartet<T>& second,
                                     uint32_t (&words)[Split<T>::kWeightParts][4]) {
  if constexpr (Split<T>::kWeightParts == 1) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      words[0][2 * i] = __byte_perm(first.word[i], second.word[i], 0x5410);
      words[0][2 * i + 1] = __byte_perm(first.word[i], second.word[i], 0x7632);
    }
  } else {
    float low[4], high[4];
    unpack(first, low);
    unpack(second, high);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t parts[Split<T>::kWeightParts];
      split(low[j], high[j], parts);
#pragma unroll
      for (int part = 0; part < Split<T>::kWeightParts; ++part) words[part][j] = parts[part];
    }
  }
}

// The same from where they lie, on the bytes of four columns.
template <typename T>
__device__ inline void pair_rows(const T* first, const T* second,
                                 uint32_t (&words)[Split<T>::kWeightParts][4]) {
  pair_quartets(*reinterpret_cast<const Quartet<T>*>(first), *reinterpret_cast<const Quartet<T>*>(second), words);
}

// sum += x (8 tokens, 32 columns) @ rows (8, 32 columns).T, as the sum of two: the instruction's left operand has 16 rows,
// which are the large parts of all tokens and then their small ones, so sum[0..1] and sum[2..3] are to be added.
template <typename T>
__device__ inline void multiply_columns(float (&sum)[4],
                                        const uint32_t (&rows)[Split<T>::kWeightParts][4],
                                        const uint32_t (&x)[Split<T>::kActivationParts][4]) {
  constexpr int kLast = Split<T>::kActivationParts - 1;
#pragma unroll
  for (int w = Split<T>::kWeightParts - 1; w >= 0; --w) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      if (kLast == 2 && w == 0) multiply(sum, x[kLast][i], 0, x[kLast][i + 1], 0, rows[w][i], rows[w][i + 1]);
      multiply(sum, x[0][i], x[1][i], x[0][i + 1], x[1][i + 1], rows[w][i], rows[w][i + 1]);
    }
  }
}

// The same for a left operand of weights, 8 rows of them, whose product goes to sum[0..1], or with is_second to sum[2..3].
template <typename T>
__device__ inline void multiply_rows(float (&sum)[4],
                                     const uint32_t (&rows)[Split<T>::kWeightParts][4],
                                     const uint32_t (&left)[Split<T>::kWeightParts][4],
                                     bool is_second) {
#pragma unroll
  for (int part = Split<T>::kWeightParts - 1; part >= 0; --part) {
#pragma unroll
    for (int a = part; a >= 0; --a) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const uint32_t low = left[a][i], high = left[a][i + 1];
        multiply(sum, is_second ? 0 : low, is_second ? low : 0, is_second ? 0 : high,
                 is_second ? high : 0, rows[part - a][i], rows[part - a][i + 1]);
      }
    }
  }
}

// Products of inner values with weight rows, for 8 tokens and 4 x 8 columns, stack two things in the 16 rows of an
// instruction. Here two branches, each with its own eight inner rows: sums[j][0..1] += first @ first_rows and
// sums[j][2..3] += second @ second_rows. Of products of two parts those count that the dtype's accuracy asks for. With
// kIsNew the sums begin here, whatever they held.
template <typename T, bool kIsNew = false>
__device__ inline void multiply_branches(float (&sums)[4][4],
                                         const uint32_t (&first)[Split<T>::kActivationParts],
                                         const uint32_t (&second)[Split<T>::kActivationParts],
                                         const uint32_t (&first_rows)[Split<T>::kWeightParts][4],
                                         const uint32_t (&second_rows)[Split<T>::kWeightParts][4]) {
  constexpr int kParts = Split<T>::kActivationParts;
#pragma unroll
  for (int a = kParts - 1; a >= 0; --a) {
#pragma unroll
    for (int w = min(Split<T>::kWeightParts, kParts - a) - 1; w >= 0; --w) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (kIsNew && a == kParts - 1) {  // which meets one part of the weights
          multiply_anew(sums[j], first[a], 0, 0, second[a], first_rows[w][j], second_rows[w][j]);
        } else {
          multiply(sums[j], first[a], 0, 0, second[a], first_rows[w][j], second_rows[w][j]);
        }
      }
    }
  }
}

// Here sixteen inner rows of one product, with two products of parts at a time: the result is sums[j][0..1] plus
// sums[j][2..3].
template <typename T, bool kIsNew = false>
__device__ inline void multiply_inner(float (&sums)[4][4],
                                      const uint32_t (&low)[Split<T>::kActivationParts],
                                      const uint32_t (&high)[Split<T>::kActivationParts],
                                      const uint32_t (&low_rows)[Split<T>::kWeightParts][4],
                                      const uint32_t (&high_rows)[Split<T>::kWeightParts][4]) {
  constexpr int kLast = Split<T>::kActivationParts - 1;
#pragma unroll
  for (int w = Split<T>::kWeightParts - 1; w >= 0; --w) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (Split<T>::kActivationParts == 3 && w == 0) {
        multiply(sums[j], low[kLast], 0, high[kLast], 0, low_rows[w][j], high_rows[w][j]);
      }
      if (kIsNew && w == Split<T>::kWeightParts - 1) {
        multiply_anew(sums[j], low[0], low[1], high[0], high[1], low_rows[w][j], high_rows[w][j]);
      } else {
        multiply(sums[j], low[0], low[1], high[0], high[1], low_rows[w][j], high_rows[w][j]);
      }
    }
  }
}

}  // namespace shadow
