// The one place that states the version; CMake parses these three lines.
#pragma once

#define MOESKIP_VERSION_MAJOR 0
#define MOESKIP_VERSION_MINOR 1
#define MOESKIP_VERSION_PATCH 0
