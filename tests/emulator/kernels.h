// Included before every csrc/cuda/*.cu of the emulator build: makes it C++ that g++ compiles.
#pragma once

#include "emulator.h"

#define DENSESIAM_EMULATOR
#define DENSESIAM_NAMESPACE densesiam_emulator
#define DENSESIAM_ON_LOAD(pointer, bytes) ::emulator::machine().on_load(pointer, bytes)
#define DENSESIAM_ON_STORE(pointer, bytes) ::emulator::machine().on_store(pointer, bytes)
