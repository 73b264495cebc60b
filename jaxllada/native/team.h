// The threads of one call, which go from phase to phase together.
//
// The caller does all of a phase's tasks itself unless others come in time, so nothing waits for a
// thread that the pool is late to give.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

struct NoHold {};

// What each thread holds while it helps, such as the set-up of a matrix unit, is a `Hold`.
template <class Hold>
class Team : public std::enable_shared_from_this<Team<Hold>> {
 public:
  static std::shared_ptr<Team> of(xla::ffi::ThreadPool& pool) {
    auto team = std::make_shared<Team>();
    team->size = std::max<int64_t>(1, pool.num_threads());
    for (int64_t i = 1; i < team->size; ++i) pool.Schedule([team] { team->help(); });
    return team;
  }

  int64_t size;

  // Runs job(i) for all i < count, and returns when all are done.
  template <class Job>
  void run(int64_t count, const Job& job) {
    context = &job;
    call = [](const void* context, int64_t i) { (*static_cast<const Job*>(context))(i); };
    done.store(0, std::memory_order_relaxed);
    phase = (phase + 1) % (1 << 16);
    state.store(packed(phase, count, 0), std::memory_order_release);
    while (work()) continue;
    while (done.load(std::memory_order_acquire) != count) relax();
  }

  // The same for parts [from, to) of `count`, several to a thread.
  template <class Job>
  void share(int64_t count, const Job& job) {
    int64_t parts = std::min(count, 4 * size);
    run(parts, [&](int64_t i) { job(count * i / parts, count * (i + 1) / parts); });
  }

  void end() { is_over.store(true, std::memory_order_release); }

 private:
  static constexpr uint64_t FIELD = 24, MASK = (1 << FIELD) - 1;

  // One number holds the phase, its tasks and how many of them are taken: a thread that is late
  // cannot take a task of one phase for that of another.
  static uint64_t packed(uint64_t phase, uint64_t count, uint64_t taken) {
    return phase << (2 * FIELD) | count << FIELD | taken;
  }

  bool work() {
    uint64_t now = state.load(std::memory_order_acquire);
    while ((now & MASK) < (now >> FIELD & MASK))
      if (state.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
        call(context, now & MASK);
        done.fetch_add(1, std::memory_order_release);
        return true;
      }
    return false;
  }

  void help() {
    if (is_over.load(std::memory_order_acquire)) return;
    Hold hold;
    while (!is_over.load(std::memory_order_acquire))
      if (!work()) relax();
  }

  std::atomic<uint64_t> state{0};
  std::atomic<int64_t> done{0};
  std::atomic<bool> is_over{false};
  uint64_t phase = 0;
  const void* context = nullptr;
  void (*call)(const void*, int64_t) = nullptr;
};
