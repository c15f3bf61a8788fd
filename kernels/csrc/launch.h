// What launches of all operators share.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

namespace shadow {

inline int divide_up(int value, int by) { return (value + by - 1) / by; }

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream, &status) == cudaSuccess &&
         status == cudaStreamCaptureStatusActive;
}

// More than the default of dynamic shared memory has to be asked for, once for each kernel and device.
// has_clusters: of any size.
inline cudaError_t allow_shared_memory(const void* kernel, int bytes, bool has_clusters) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> allowed;
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  std::lock_guard<std::mutex> guard(mutex);
  int& known = allowed[{kernel, device}];
  if (bytes <= known) return cudaSuccess;
  if (has_clusters && known == 0) {
    if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) {
      return error;
    }
  }
  known = bytes;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// Lets a kernel start while the one in front of it still runs. It reads weights and the grouping then. Inside a graph
// nothing writes those; outside, the kernel in front may be the copy that fills a slot: use it in graphs alone.
inline cudaLaunchAttribute early_launch() {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

// Below compute capability 9.0 no kernel is launched as another's dependent.
inline bool is_launched_early(cudaStream_t stream) {
  int device = 0, major = 0;
  return is_capturing(stream) && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}

}  // namespace shadow
