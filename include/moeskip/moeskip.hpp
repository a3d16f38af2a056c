// The library on the CPU, in the order of its floors. Opt-in headers, which bring further dependencies, are not here:
// model/checkpoint.hpp, train/resume.hpp and train/fit.hpp (nlohmann-json), cuda.hpp.
#pragma once

#include "moeskip/fwd.hpp"
#include "moeskip/version.hpp"

#include "moeskip/backend/cpu.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "moeskip/model/config.hpp"
#include "moeskip/model/describe.hpp"
#include "moeskip/model/model.hpp"
#include "moeskip/parts/exit_head/low_rank.hpp"
#include "moeskip/parts/exit_head/own.hpp"
#include "moeskip/parts/exit_head/shared.hpp"
#include "moeskip/parts/expert_dropout/bernoulli.hpp"
#include "moeskip/parts/expert_dropout/none.hpp"
#include "moeskip/parts/layer_dropout/none.hpp"
#include "moeskip/parts/layer_dropout/schedules.hpp"
#include "moeskip/parts/router/switch_top1.hpp"
#include "moeskip/parts/router/top_k.hpp"

#include "moeskip/decode/generate.hpp"
#include "moeskip/eval/validation.hpp"
#include "moeskip/train/flops.hpp"
#include "moeskip/train/optimizer/muon.hpp"
#include "moeskip/train/trainer.hpp"
