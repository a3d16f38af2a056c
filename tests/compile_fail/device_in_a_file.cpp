// expect: moeskip: load_mapped leaves weights in a file of the host, which this backend does not see: use load
#include "moeskip/cuda.hpp"
#include "moeskip/model/mapped.hpp"
namespace ms = moeskip;
struct mine : ms::variant {};
void open() { ms::load_mapped<mine, ms::emulated_cuda<float>>("file"); }
