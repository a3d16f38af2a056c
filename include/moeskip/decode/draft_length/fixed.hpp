// A fixed number of drafted tokens a round.
#pragma once

#include <string_view>

namespace moeskip::draft_length {

struct fixed {
  static constexpr std::string_view name = "fixed";
  int num_speculations = 4;

  int longest() const { return num_speculations; }
  bool more(int drafted, double) const { return drafted < num_speculations; }
  void observe(int, int) {}
};

}  // namespace moeskip::draft_length
