// The safetensors format, reading and writing. Opt-in: needs nlohmann/json.
#pragma once

#include "moeskip/formats/safetensors_reader.hpp"
#include "moeskip/formats/safetensors_writer.hpp"
