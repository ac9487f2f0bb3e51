// GPUs that do nothing, as torch for processors has none: with them tensors without memory can say that they are there.
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
static impl::DeviceGuardImplRegistrar cuda(DeviceType::CUDA, new impl::NoOpDeviceGuardImpl<DeviceType::CUDA>);
static impl::DeviceGuardImplRegistrar mps(DeviceType::MPS, new impl::NoOpDeviceGuardImpl<DeviceType::MPS>);
