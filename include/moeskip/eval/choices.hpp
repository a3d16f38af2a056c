// Multiple-choice questions scored by log-likelihood, at every exit: the answer of a model is the choice that it finds
// likeliest behind the question.
//   log p(c | q) = Σ_t log p(c_t | q, c_<t)        accuracy     the largest is right                  "acc"
//                                                  by length    the largest over the choice's length  "acc_norm"
//   both as in EleutherAI's lm-evaluation-harness; length in tokens, which are bytes for a vocabulary of bytes
// Where several are equal, the first of them is taken.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "moeskip/eval/depth_readings.hpp"

namespace moeskip {

struct choice_question {
  std::vector<int> context{};               // tokens; at least one
  std::vector<std::vector<int>> choices{};  // tokens of each; at least two of at least one
  int answer = 0;                           // the right one
};

struct choices_judged {
  int exit_layer = 0;
  double correct = 0, correct_by_length = 0,
         agreement = 0;  // shares of questions; agreement: with the full depth's answer
};

/// What a model must read to answer: every context with every choice of it, question by question.
inline std::vector<std::vector<int>> choice_texts(std::span<const choice_question> questions) {
  std::vector<std::vector<int>> texts;
  for (std::size_t q = 0; q < questions.size(); ++q) {
    const choice_question& one = questions[q];
    MOESKIP_CHECK(config_error, !one.context.empty(), "questions[", q, "].context: expected at least one token");
    MOESKIP_CHECK(config_error, one.choices.size() >= 2, "questions[", q, "].choices: expected at least two, got ",
                  one.choices.size());
    MOESKIP_CHECK(config_error, one.answer >= 0 && std::size_t(one.answer) < one.choices.size(), "questions[", q,
                  "].answer: expected from 0 to ", one.choices.size() - 1, ", got ", one.answer);
    for (const std::vector<int>& choice : one.choices) {
      MOESKIP_CHECK(config_error, !choice.empty(), "questions[", q, "].choices: expected at least one token in each");
      texts.push_back(one.context);
      texts.back().insert(texts.back().end(), choice.begin(), choice.end());
    }
  }
  return texts;
}

/// r: readings of choice_texts(questions), of any exits.
inline std::vector<choices_judged> judge_choices(const depth_readings& r, std::span<const choice_question> questions) {
  const std::size_t E = r.exits.size();
  std::vector<choices_judged> out;
  for (const int e : r.exits) out.push_back({.exit_layer = e});
  std::size_t at = 0;  // row of r
  std::vector<std::size_t> best(E), best_by_length(E);
  for (const choice_question& q : questions) {
    std::vector<double> least(E, INFINITY), least_by_length(E, INFINITY);  // bits
    for (std::size_t c = 0; c < q.choices.size(); ++c) {
      const std::size_t length = q.choices[c].size();
      at += q.context.size() - 1;
      for (std::size_t e = 0; e < E; ++e) {
        double bits = 0;
        for (std::size_t t = 0; t < length; ++t) bits += r.bits[(at + t) * E + e];
        if (bits < least[e]) least[e] = bits, best[e] = c;
        if (bits / double(length) < least_by_length[e])
          least_by_length[e] = bits / double(length), best_by_length[e] = c;
      }
      at += length;
    }
    for (std::size_t e = 0; e < E; ++e) {
      const double share = 1 / double(questions.size());
      out[e].correct += share * (best[e] == std::size_t(q.answer));
      out[e].correct_by_length += share * (best_by_length[e] == std::size_t(q.answer));
      out[e].agreement += share * (best[e] == best[E - 1]);
    }
  }
  return out;
}

/// Share of questions that guessing answers.
inline double chance(std::span<const choice_question> questions) {
  double sum = 0;
  for (const choice_question& q : questions) sum += 1 / double(q.choices.size());
  return questions.empty() ? 0 : sum / double(questions.size());
}

}  // namespace moeskip
