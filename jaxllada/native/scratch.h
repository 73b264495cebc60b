// Memory that a thread keeps from call to call: asking the system for it would cost page faults.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

class Scratch {
 public:
  // Room for some numbers, aligned to pages; what it holds is not defined.
  template <class T>
  T* take(int64_t count) {
    if (used == pieces.size()) pieces.emplace_back();
    Piece& piece = pieces[used++];
    int64_t bytes = (count * sizeof(T) + 4096) / 4096 * 4096;
    if (piece.bytes < bytes)
      piece = {std::shared_ptr<void>(std::aligned_alloc(4096, bytes), std::free), bytes};
    return static_cast<T*>(piece.memory.get());
  }

  // Gives all back, for the next call.
  void reset() { used = 0; }

 private:
  struct Piece {
    std::shared_ptr<void> memory;
    int64_t bytes = 0;
  };
  std::vector<Piece> pieces;
  size_t used = 0;
};
