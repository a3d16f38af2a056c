// Training data: windows of text at random places. Where step s reads is a pure function of (seed, s), so a resumed run
// sees the same batches.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "moeskip/base/check.hpp"
#include "moeskip/base/rng.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// S sequences of C tokens: inputs and targets (S·C), each target the token after its input.
struct batch {
  vec<const int> inputs, targets;
  int sequences, length;
};

class random_windows {
 public:
  /// Throws config_error unless the text fills at least one batch.
  random_windows(std::span<const int> tokens, int sequences, int length, seed from)
      : tokens_(tokens), sequences_(sequences), length_(length), draw_{from, stream::data} {
    MOESKIP_CHECK(config_error, sequences >= 1 && length >= 1, "a batch needs at least one sequence of one token, got ",
                  sequences, " of ", length);
    const index_t need = index_t(sequences) * length + 1;
    MOESKIP_CHECK(config_error, index_t(tokens.size()) >= need,
                  "the corpus is shorter than one batch: expected at least ", need, " tokens (", sequences,
                  " sequences of ", length, " and one more), got ", tokens.size());
    inputs_.resize(std::size_t(need - 1)), targets_.resize(std::size_t(need - 1));
  }

  random_windows(std::vector<int>&&, int, int, seed) = delete;  // the text must outlive this

  /// What must be the same for a resumed run to see the same batches: for save() and resume(). Reads all tokens.
  std::map<std::string, std::string> about() const {
    return {{"data.tokens", text(tokens_.size())},
            {"data.hash", text(hash())},
            {"data.sequences", text(sequences_)},
            {"data.length", text(length_)},
            {"data.seed", text(draw_.from.value)}};
  }

  int sequences() const { return sequences_; }
  int length() const { return length_; }
  int tokens_per_batch() const { return sequences_ * length_; }

  /// The batch of a step and of its micro-batch; valid until the next call.
  batch at(std::uint64_t step, std::uint64_t micro = 0) {
    for (int s = 0; s < sequences_; ++s) {
      const std::size_t from = draw_.below(tokens_.size() - std::size_t(length_), step, micro, std::uint64_t(s));
      for (std::size_t i = 0; i < std::size_t(length_); ++i) {
        inputs_[std::size_t(s * length_) + i] = tokens_[from + i];
        targets_[std::size_t(s * length_) + i] = tokens_[from + i + 1];
      }
    }
    return {{inputs_.data(), inputs_.size()}, {targets_.data(), targets_.size()}, sequences_, length_};
  }

 private:
  /// 64 bits that tell texts apart, the same on every machine: FNV-1a's multiply and xor on whole tokens, their high
  /// bits folded back so that they reach the low ones.
  std::uint64_t hash() const {
    std::uint64_t h = 0xcbf29ce484222325u;
    for (const int token : tokens_) {
      h = (h ^ std::uint64_t(std::uint32_t(token))) * 0x100000001b3u;
      h ^= h >> 29;
    }
    return h;
  }

  std::span<const int> tokens_;
  int sequences_, length_;
  draws draw_;
  std::vector<int> inputs_, targets_;
};

}  // namespace moeskip
