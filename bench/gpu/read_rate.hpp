// What the card's memory gives to a kernel that does nothing but read: the floor under decoding is computed from it.
#pragma once

namespace bench {

/// Bytes a second. Throws error where the card has no 8 GiB left.
double read_rate();

}  // namespace bench
