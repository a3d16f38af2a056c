// The least program that uses moeskip: it prints the version.
#include <cstdio>
#include <moeskip/moeskip.hpp>

int main() { std::printf("%d.%d.%d\n", MOESKIP_VERSION_MAJOR, MOESKIP_VERSION_MINOR, MOESKIP_VERSION_PATCH); }
