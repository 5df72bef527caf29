// The emulator's switches and counters, for Python's ctypes.
#include "emulator.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulator_set_order(int order, std::uint64_t seed) {
  emulator::machine().order = static_cast<emulator::Order>(order);
  emulator::machine().seed = seed;
}

EXPORT void emulator_trace(bool on) {
  emulator::machine().tracing = on;
  if (on) emulator::machine().launches.clear();
}

EXPORT std::size_t emulator_launches() { return emulator::machine().launches.size(); }

EXPORT void emulator_traffic(std::size_t launch, std::uint64_t* result) {
  const emulator::Traffic& traffic = emulator::machine().launches.at(launch);
  result[0] = traffic.loaded_sectors;
  result[1] = traffic.stored_sectors;
  result[2] = traffic.loaded_bytes;
  result[3] = traffic.stored_bytes;
}

EXPORT void emulator_observe(bool (*observer)(const emulator::LaunchRecord*)) {
  emulator::machine().observer = observer;
}
