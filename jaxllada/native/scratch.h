// Memory that is kept from call to call: asking the system for it would cost page faults.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

class Scratch {
 public:
  // Room for some numbers, aligned to pages; what it holds is not defined. Throws std::bad_alloc.
  template <class T>
  T* take(int64_t count) {
    if (used == pieces.size()) pieces.emplace_back();
    Piece& piece = pieces[used++];
    size_t bytes = count * sizeof(T);
    if (piece.bytes < bytes) {
      piece = {};
      piece.memory.reset(::operator new(bytes, PAGE));
      piece.bytes = bytes;
    }
    return static_cast<T*>(piece.memory.get());
  }

  // What a call borrows. Calls come from any thread, so it is kept for as many as ran at once.
  class Loan {
   public:
    Loan() {
      std::lock_guard<std::mutex> lock(mutex());
      if (idle().empty()) idle().push_back(std::make_unique<Scratch>());
      scratch = std::move(idle().back());
      idle().pop_back();
    }
    ~Loan() {
      scratch->used = 0;
      std::lock_guard<std::mutex> lock(mutex());
      idle().push_back(std::move(scratch));
    }
    Scratch& operator*() { return *scratch; }

   private:
    std::unique_ptr<Scratch> scratch;

    // Never destroyed: a thread may still compute while the program ends.
    static std::mutex& mutex() {
      static auto& mutex = *new std::mutex;
      return mutex;
    }
    static std::vector<std::unique_ptr<Scratch>>& idle() {
      static auto& idle = *new std::vector<std::unique_ptr<Scratch>>;
      return idle;
    }
  };

 private:
  static constexpr std::align_val_t PAGE{4096};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, PAGE); }
  };
  struct Piece {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };
  std::vector<Piece> pieces;
  size_t used = 0;
};
