// The report's page in a unit of its own, which the demo and the tool share: its text is long to compile.
#pragma once

#include <string>

#include "moeskip/eval/report/data.hpp"

namespace page {

/// moeskip::report::html.
std::string html(const moeskip::report::report_data& d);

}  // namespace page
