/* What the parts of the simulated NVML library share: the mapped state, and the rules every call obeys. */
#ifndef RANKSCOPE_SIM_INTERNAL_H
#define RANKSCOPE_SIM_INTERNAL_H

#define NVML_NO_UNVERSIONED_FUNC_DEFS /* old and new spellings are both defined here */
#include <nvml.h>

#include "layout.h"

typedef const volatile sim_gpu *sim_gpu_ref;
typedef const volatile sim_mig *sim_mig_ref;

/* The mapped host; NULL before the first nvmlInit. */
const volatile sim_node *sim_state(void);

/* The rules every call obeys, in the order of the real library: initialised, handle valid, arguments present;
 * then the call waits while its GPU hangs and as long as its latency, and fails if the GPU is gone. */
nvmlReturn_t sim_initialised(void);
nvmlReturn_t sim_enter(nvmlDevice_t device, const void *argument, sim_gpu_ref *gpu);
/* The same for calls that take MIG handles too; `mig` is NULL for a whole GPU. */
nvmlReturn_t sim_enter_any(nvmlDevice_t device, const void *argument, sim_gpu_ref *gpu, sim_mig_ref *mig);
nvmlReturn_t sim_unsupported(const char *name, nvmlDevice_t first_argument);

nvmlDevice_t sim_handle(unsigned int gpu);
nvmlDevice_t sim_mig_handle(nvmlDevice_t device, unsigned int place);
int sim_driver_at_least(unsigned int major, unsigned int minor);

/* Copies a string with NVML's rule for short buffers. */
nvmlReturn_t sim_copy(char *to, unsigned int length, const volatile char *from);

uint64_t sim_monotonic_ns(void);
uint64_t sim_realtime_us(void);
void sim_sleep_ns(uint64_t ns);

/* Counters that several parts read. */
uint64_t sim_ecc(sim_gpu_ref gpu, unsigned int lifetime, unsigned int kind, unsigned int location);
uint64_t sim_ecc_total(sim_gpu_ref gpu, unsigned int lifetime, unsigned int kind);
uint64_t sim_link_sum(sim_gpu_ref gpu, size_t offset);
int sim_temperature(double celsius);
unsigned int sim_power_usage(sim_gpu_ref gpu);

#define ENTER(device, argument)                                      \
    sim_gpu_ref gpu;                                                 \
    do {                                                             \
        nvmlReturn_t entered_ = sim_enter((device), (argument), &gpu); \
        if (entered_ != NVML_SUCCESS)                                \
            return entered_;                                         \
    } while (0)

#define ENTER_ANY(device, argument)                                  \
    sim_gpu_ref gpu;                                                 \
    sim_mig_ref mig;                                                 \
    do {                                                             \
        nvmlReturn_t entered_ = sim_enter_any((device), (argument), &gpu, &mig); \
        if (entered_ != NVML_SUCCESS)                                \
            return entered_;                                         \
    } while (0)

/* Calls of later headers than a driver knows: the symbol is not in its library. */
#define SINCE_DRIVER(major)                          \
    do {                                             \
        if (!sim_driver_at_least((major), 0))        \
            return NVML_ERROR_FUNCTION_NOT_FOUND;    \
    } while (0)

#define NOT_UNDER_MIG()                              \
    do {                                             \
        if (gpu->mig_enabled)                        \
            return NVML_ERROR_NOT_SUPPORTED;         \
    } while (0)

#define NEEDS(feature)                                   \
    do {                                                 \
        if (gpu->not_supported & SIM_FEATURE_##feature)  \
            return NVML_ERROR_NOT_SUPPORTED;             \
    } while (0)

#define CHECK(condition)                         \
    do {                                         \
        if (!(condition))                        \
            return NVML_ERROR_INVALID_ARGUMENT;  \
    } while (0)

#define VERSIONED(pointer, expected)                         \
    do {                                                     \
        if ((pointer)->version != (expected))                \
            return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;     \
    } while (0)

/* A function that stores one value of the GPU. */
#define GETTER(function, type, expression)                       \
    nvmlReturn_t function(nvmlDevice_t device, type *value) {    \
        ENTER(device, value);                                    \
        *value = (type)(expression);                             \
        return NVML_SUCCESS;                                     \
    }

#define GETTER_IF(feature, function, type, expression)           \
    nvmlReturn_t function(nvmlDevice_t device, type *value) {    \
        ENTER(device, value);                                    \
        NEEDS(feature);                                          \
        *value = (type)(expression);                             \
        return NVML_SUCCESS;                                     \
    }

#endif
