// Byte-pair encoding of one piece of text: the pair of neighbours that was learnt first is merged, again and again.
//                                                                            Sennrich et al. 2016, arXiv:1508.07909
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moeskip::tokenizer {

class byte_pairs {
 public:
  struct merge {
    int rank, into;
  };

  std::array<int, 256> byte_ids{};  // the token of each byte

  void reserve(std::size_t merges) { merges_.reserve(merges); }
  /// False where the pair has a merge already.
  bool add(int left, int right, merge m) { return merges_.emplace(key(left, right), m).second; }

  /// Appends the ids of a piece. Time goes with n log n for long pieces.
  void encode(std::vector<int>& out, std::string_view piece) const {
    if (piece.size() <= 48) few(out, piece);
    else many(out, piece);
  }

 private:
  static std::uint64_t key(int left, int right) {
    return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right);
  }
  const merge* find(int left, int right) const {
    const auto found = merges_.find(key(left, right));
    return found == merges_.end() ? nullptr : &found->second;
  }

  /// A short piece: look for the best pair, merge it, look at its two new neighbours.
  void few(std::vector<int>& out, std::string_view piece) const {
    std::array<int, 48> id;
    std::array<const merge*, 48> with_next;
    std::size_t n = piece.size();
    for (std::size_t i = 0; i < n; ++i) id[i] = byte_ids[static_cast<unsigned char>(piece[i])];
    for (std::size_t i = 0; i + 1 < n; ++i) with_next[i] = find(id[i], id[i + 1]);
    while (n > 1) {
      std::size_t best = n;
      for (std::size_t i = 0; i + 1 < n; ++i)
        if (with_next[i] && (best == n || with_next[i]->rank < with_next[best]->rank)) best = i;
      if (best == n) break;
      id[best] = with_next[best]->into, --n;
      for (std::size_t i = best + 1; i < n; ++i) id[i] = id[i + 1], with_next[i] = with_next[i + 1];
      if (best + 1 < n) with_next[best] = find(id[best], id[best + 1]);
      if (best > 0) with_next[best - 1] = find(id[best - 1], id[best]);
    }
    out.insert(out.end(), id.begin(), id.begin() + std::ptrdiff_t(n));
  }

  /// A long piece: symbols in a list, pairs in a heap by rank and then by place; outdated ones are passed over.
  void many(std::vector<int>& out, std::string_view piece) const {
    struct symbol {
      int id;
      std::size_t before, after;
    };
    struct pair {
      int rank;
      std::size_t left;
      int left_id, right_id, into;
      bool operator<(const pair& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
    };
    const std::size_t n = piece.size();
    std::vector<symbol> symbols(n);
    std::priority_queue<pair> queue;
    const auto propose = [&](std::size_t left) {
      const std::size_t right = symbols[left].after;
      if (right == n) return;
      if (const merge* m = find(symbols[left].id, symbols[right].id))
        queue.push({m->rank, left, symbols[left].id, symbols[right].id, m->into});
    };
    for (std::size_t i = 0; i < n; ++i) symbols[i] = {byte_ids[static_cast<unsigned char>(piece[i])], i - 1, i + 1};
    for (std::size_t i = 0; i + 1 < n; ++i) propose(i);
    while (!queue.empty()) {
      const pair p = queue.top();
      queue.pop();
      symbol& left = symbols[p.left];
      if (left.id != p.left_id || left.after == n || symbols[left.after].id != p.right_id) continue;
      symbol& right = symbols[left.after];
      left.id = p.into, right.id = -1, left.after = right.after;
      if (left.after != n) symbols[left.after].before = p.left;
      if (left.before != std::size_t(-1)) propose(left.before);
      propose(p.left);
    }
    for (std::size_t i = 0; i < n; i = symbols[i].after) out.push_back(symbols[i].id);
  }

  std::unordered_map<std::uint64_t, merge> merges_;
};

}  // namespace moeskip::tokenizer
