// Parallel work on the CPU whose bits do not depend on the number of threads.
//
// at::parallel_for hands out ranges that follow from the number of threads. Kernels therefore cut
// their work into blocks by shape alone, compute each block the same way wherever it runs, and
// combine the blocks' partial sums afterwards, in order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "../../torch.h"

namespace densesiam {

// Fewer element operations than this are not worth waking another thread.
constexpr std::int64_t kGrainElements = 32768;

// Calls body(begin, end) on ranges that cover [0, blocks), each block of about `cost` element
// operations. What body throws is thrown here, and never through the thread pool.
template <class Body>
void parallel_blocks(std::int64_t blocks, std::int64_t cost, const Body& body) {
  const std::int64_t grain =
      std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, cost));
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(0, blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    try {
      body(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

// Uninitialised working memory, aligned to whole cache lines.
template <class T>
class Scratch {
 public:
  explicit Scratch(std::int64_t size)
      : memory_(static_cast<T*>(
            ::operator new(static_cast<std::size_t>(size) * sizeof(T), kAlignment))) {}
  T* data() { return memory_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* pointer) const { ::operator delete(pointer, kAlignment); }
  };
  std::unique_ptr<T, Free> memory_;
};

inline std::int64_t ceil_divide(std::int64_t number, std::int64_t by) {
  return (number + by - 1) / by;
}

}  // namespace densesiam
