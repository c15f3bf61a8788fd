// The approximate functions on the CPU, in place of kernels/csrc/include/shadow/fast_math.cuh.
#pragma once

namespace shadow {

inline float power_of_two(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }

}  // namespace shadow
