// Names the operators' schemas that this library is for.
#include "../interface.h"

DENSESIAM_KEEP_INTERFACE;
