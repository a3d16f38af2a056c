#include "page.hpp"

#include "moeskip/eval/report/html.hpp"

std::string page::html(const moeskip::report::report_data& d) { return moeskip::report::html(d); }
