// Heavy to compile, hence alone.
#include "../models/models.hpp"
#include "open_as.hpp"

template std::unique_ptr<tool::any_model> tool::open_as<models::all_moe, moeskip::cpu<moeskip::bf16>>(
    const std::string&, const std::string&, bool);
