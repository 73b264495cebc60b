// The threads of one call, which go from phase to phase together.
//
// The caller does all of a phase's tasks itself unless others come in time, so nothing waits for a
// thread that the pool is late to give.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits for another thread; one that does not run gets this one's time after a while.
class Patience {
 public:
  void wait() { ++times < 2000 ? relax() : std::this_thread::yield(); }

 private:
  int64_t times = 0;
};

struct NoHold {};

// What each thread holds while it helps, such as the set-up of a matrix unit, is a `Hold`. A task
// that throws ends the program.
template <class Hold>
class Team {
 public:
  explicit Team(xla::ffi::ThreadPool& pool)
      : size(std::max<int64_t>(1, pool.num_threads())), shared(std::make_shared<Shared>()) {
    for (int64_t i = 1; i < size; ++i) pool.Schedule([shared = shared] { shared->help(); });
  }
  Team(const Team&) = delete;
  ~Team() { shared->is_over.store(true, std::memory_order_release); }

  const int64_t size;

  // Runs job(i) for all i < count, and returns when all are done.
  template <class Job>
  void run(int64_t count, const Job& job) {
    shared->context = &job;
    shared->call = [](const void* context, int64_t i) { (*static_cast<const Job*>(context))(i); };
    shared->done.store(0, std::memory_order_relaxed);
    shared->state.store(uint64_t(count) << Shared::FIELD, std::memory_order_release);
    while (shared->work()) continue;
    for (Patience patience; shared->done.load(std::memory_order_acquire) != count;) patience.wait();
  }

  // The same for parts [from, to) of `count`, several to a thread.
  template <class Job>
  void share(int64_t count, const Job& job) {
    int64_t parts = std::min(count, 4 * size);
    run(parts, [&](int64_t i) { job(count * i / parts, count * (i + 1) / parts); });
  }

 private:
  // Outlives the call: a thread may come late.
  struct Shared {
    static constexpr uint64_t FIELD = 32, MASK = (uint64_t(1) << FIELD) - 1;

    // How many tasks a phase has, and below how many of them are taken: in one number, so that who
    // takes one takes it of the phase that is on, which cannot end before it is done.
    std::atomic<uint64_t> state{0};
    std::atomic<int64_t> done{0};
    std::atomic<bool> is_over{false};
    const std::thread::id caller = std::this_thread::get_id();
    const void* context = nullptr;
    void (*call)(const void*, int64_t) = nullptr;

    bool work() noexcept {
      uint64_t now = state.load(std::memory_order_acquire);
      while ((now & MASK) < now >> FIELD)
        if (state.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
          call(context, now & MASK);
          done.fetch_add(1, std::memory_order_release);
          return true;
        }
      return false;
    }

    void help() {
      // A pool that is full runs what it is given in the thread that gives it.
      if (std::this_thread::get_id() == caller || is_over.load(std::memory_order_acquire)) return;
      [[maybe_unused]] Hold hold;
      for (Patience patience; !is_over.load(std::memory_order_acquire);)
        if (work()) patience = {};
        else patience.wait();
    }
  };

  std::shared_ptr<Shared> shared;
};
