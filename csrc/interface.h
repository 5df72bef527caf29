// Which operators the libraries are for: the fingerprint of their schemas (`interface` in
// densesiam/ops/_operations.py). Python reads it from a library before loading it, and leaves one
// of other schemas alone, which would misread its arguments. tests/test_libraries.py has the value.
#pragma once

#define DENSESIAM_INTERFACE "d4e37eb60bce0fba"

// Puts it into a library, where a search of the file finds it.
#define DENSESIAM_KEEP_INTERFACE \
  [[gnu::used]] static const char kept_interface[] = "densesiam interface " DENSESIAM_INTERFACE ";"
