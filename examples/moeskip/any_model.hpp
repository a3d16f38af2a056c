// A model whose variant is known only when its file has been read. What is heavy to compile stands behind this door,
// once for each variant and storage (open_*.cpp); commands see nothing of it.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moeskip/decode/generate.hpp"
#include "moeskip/eval/calibration.hpp"
#include "moeskip/eval/depth_readings.hpp"
#include "moeskip/eval/expert_observer.hpp"
#include "moeskip/eval/roofline.hpp"
#include "moeskip/eval/stage_work.hpp"
#include "moeskip/model/describe.hpp"

namespace tool {
namespace ms = moeskip;

using texts = std::vector<std::vector<int>>;

/// How a prompt is continued.
struct decoder_choice {
  enum kind { plain, early_exit, speculative } what = plain;
  float threshold = 0.9f;  // of early exit
};

struct model_facts {
  std::string file, variant, policies, weights;  // weights: "f32" or "bf16", as they are held in memory
  double bytes_per_weight = 0;
  ms::sizes sizes{};
  int experts_per_token = 0;
  std::vector<int> exits{};  // the full depth last
  ms::model_footprint footprint{};
  std::string description{};  // describe(model)
  ms::string_map metadata{};

  bool leaves_early() const { return exits.size() > 1; }
};

struct continuation : ms::generated {
  ms::stage_work work{};
};

class any_model {
 public:
  virtual ~any_model() = default;
  virtual const model_facts& facts() const = 0;
  virtual std::vector<ms::exit_quality> evaluate(std::span<const int> tokens, const ms::window_options& windows,
                                                 ms::expert_observer& watch) = 0;
  /// At all exits, the full depth last; of a model without others at that alone.
  virtual ms::depth_readings read_depth(const texts& all) = 0;
  virtual ms::calibration calibrate(const texts& all, const ms::calibration_options& options) = 0;
  /// All calls share a session: what a decoder learns of the machine, it keeps.
  virtual continuation generate(std::span<const int> prompt, const ms::generation& options, const decoder_choice& how,
                                const std::function<void(const ms::emitted&)>& sink) = 0;
  /// What this machine can do with weights of this size.
  virtual ms::machine_limits limits() const = 0;
  /// Keeps what else the file says of the model, but not the state of an unfinished training.
  virtual void save(const std::string& path, const ms::string_map& about) = 0;
};

/// in_file: as stored, and left in the file (model/mapped.hpp).
enum class storage { as_stored, f32, bf16, in_file };

/// Throws file_error that names every difference to the variants that are known.
std::unique_ptr<any_model> open(const std::string& path, storage weights);

/// Why this program cannot run a file; empty where it can. Throws file_error where it cannot be read at all.
std::string complaint(const std::string& path, const ms::string_map& metadata);

/// Explicitly instantiated in open_*.cpp.
template <class V, class B>
std::unique_ptr<any_model> open_as(const std::string& path, const std::string& variant, bool in_file);

}  // namespace tool
