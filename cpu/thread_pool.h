// Tasks on XLA's intra-op thread pool, the calling thread included.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace jax_nm {

// Shared between the caller and the helpers it schedules. A helper that the pool starts late, or
// never, finds no task left and touches nothing of the caller's.
class TaskCounter {
 public:
  explicit TaskCounter(int64_t tasks) : tasks_(tasks) {}

  // The next task, or -1 if all have been taken.
  int64_t Take() {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < tasks_ ? task : -1;
  }

  void Finish(int64_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ += count;
    if (finished_ == tasks_) all_finished_.notify_all();
  }

  // Waits for tasks that were taken only, so it cannot deadlock even if every thread of the pool is
  // itself waiting in here.
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_finished_.wait(lock, [this] { return finished_ == tasks_; });
  }

 private:
  const int64_t tasks_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_finished_;
  int64_t finished_ = 0;
};

// Calls worker(first_task, counter) on up to as many threads as the pool has. The worker runs
// `first_task`, goes on with counter.Take() until it returns -1, and returns how many it finished.
template <typename Worker>
void RunTasks(::xla::ffi::ThreadPool& pool, int64_t tasks, const Worker& worker) {
  if (tasks == 0) return;
  const auto counter = std::make_shared<TaskCounter>(tasks);
  const auto run = [counter, &worker] {
    const int64_t first = counter->Take();
    if (first >= 0) counter->Finish(worker(first, *counter));
  };
  const int64_t threads = pool.num_threads() < tasks ? pool.num_threads() : tasks;
  for (int64_t i = 1; i < threads; ++i) {
    auto helper = run;
    pool.Schedule(std::move(helper));
  }
  run();
  counter->Wait();
}

}  // namespace jax_nm
