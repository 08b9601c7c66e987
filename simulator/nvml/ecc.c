/* ECC counters, row remapping and page retirement. */
#include "internal.h"

#include <string.h>

#define VOLATILE 0
#define AGGREGATE 1
#define CORRECTED 0
#define UNCORRECTED 1

uint64_t sim_ecc(sim_gpu_ref gpu, unsigned int lifetime, unsigned int kind, unsigned int location) {
    return gpu->ecc_errors[(lifetime * 2 + kind) * SIM_ECC_LOCATIONS + location];
}

uint64_t sim_ecc_total(sim_gpu_ref gpu, unsigned int lifetime, unsigned int kind) {
    uint64_t total = 0;
    for (unsigned int location = 0; location < SIM_ECC_LOCATIONS; location++)
        total += sim_ecc(gpu, lifetime, kind, location);
    return total;
}

/* Everything but device memory is SRAM. */
static uint64_t sram(sim_gpu_ref gpu, unsigned int lifetime, unsigned int kind) {
    return sim_ecc_total(gpu, lifetime, kind) - sim_ecc(gpu, lifetime, kind, NVML_MEMORY_LOCATION_DRAM);
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending) {
    ENTER(device, current);
    CHECK(pending);
    *current = *pending = gpu->ecc_enabled ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}
GETTER(nvmlDeviceGetDefaultEccMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t kind,
                                         nvmlEccCounterType_t lifetime, unsigned long long *count) {
    ENTER(device, count);
    CHECK(kind < NVML_MEMORY_ERROR_TYPE_COUNT && lifetime < NVML_ECC_COUNTER_TYPE_COUNT);
    if (!gpu->ecc_enabled)
        return NVML_ERROR_NOT_SUPPORTED;
    *count = sim_ecc_total(gpu, lifetime, kind);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t kind,
                                             nvmlEccCounterType_t lifetime, nvmlMemoryLocation_t location,
                                             unsigned long long *count) {
    ENTER(device, count);
    CHECK(kind < NVML_MEMORY_ERROR_TYPE_COUNT && lifetime < NVML_ECC_COUNTER_TYPE_COUNT);
    CHECK(location < SIM_ECC_LOCATIONS);
    if (!gpu->ecc_enabled)
        return NVML_ERROR_NOT_SUPPORTED;
    *count = location == NVML_MEMORY_LOCATION_SRAM ? sram(gpu, lifetime, kind)
                                                   : sim_ecc(gpu, lifetime, kind, location);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDetailedEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t kind,
                                            nvmlEccCounterType_t lifetime, nvmlEccErrorCounts_t *counts) {
    ENTER(device, counts);
    CHECK(kind < NVML_MEMORY_ERROR_TYPE_COUNT && lifetime < NVML_ECC_COUNTER_TYPE_COUNT);
    if (!gpu->ecc_enabled)
        return NVML_ERROR_NOT_SUPPORTED;
    counts->l1Cache = sim_ecc(gpu, lifetime, kind, NVML_MEMORY_LOCATION_L1_CACHE);
    counts->l2Cache = sim_ecc(gpu, lifetime, kind, NVML_MEMORY_LOCATION_L2_CACHE);
    counts->deviceMemory = sim_ecc(gpu, lifetime, kind, NVML_MEMORY_LOCATION_DRAM);
    counts->registerFile = sim_ecc(gpu, lifetime, kind, NVML_MEMORY_LOCATION_REGISTER_FILE);
    return NVML_SUCCESS;
}

/* The header asks for root here; the simulated caller may read it, so that the values can be tested. */
nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device, nvmlEccSramErrorStatus_t *status) {
    ENTER(device, status);
    NEEDS(SRAM_ECC_STATUS);
    VERSIONED(status, nvmlEccSramErrorStatus_v1);
    if (!gpu->ecc_enabled)
        return NVML_ERROR_NOT_SUPPORTED;
    unsigned int version = status->version;
    memset(status, 0, sizeof *status);
    status->version = version;
    status->aggregateUncParity = gpu->sram_parity_aggregate;
    status->volatileUncParity = gpu->sram_parity_volatile;
    status->aggregateUncBucketPcie = gpu->sram_pcie_aggregate;
    status->aggregateUncBucketMcu = gpu->sram_microcontroller_aggregate;
    status->aggregateUncSecDed = sram(gpu, AGGREGATE, UNCORRECTED);
    status->aggregateCor = sram(gpu, AGGREGATE, CORRECTED);
    status->volatileUncSecDed = sram(gpu, VOLATILE, UNCORRECTED);
    status->volatileCor = sram(gpu, VOLATILE, CORRECTED);
    status->aggregateUncBucketL2 = sim_ecc(gpu, AGGREGATE, UNCORRECTED, NVML_MEMORY_LOCATION_L2_CACHE);
    status->aggregateUncBucketSm = sim_ecc(gpu, AGGREGATE, UNCORRECTED, NVML_MEMORY_LOCATION_L1_CACHE) +
                                   sim_ecc(gpu, AGGREGATE, UNCORRECTED, NVML_MEMORY_LOCATION_REGISTER_FILE);
    status->aggregateUncBucketOther =
        status->aggregateUncSecDed - status->aggregateUncBucketL2 - status->aggregateUncBucketSm;
    status->bThresholdExceeded = gpu->sram_threshold_exceeded;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                       unsigned int *pending, unsigned int *failure) {
    ENTER(device, corrected);
    CHECK(uncorrected && pending && failure);
    NEEDS(ROW_REMAP);
    NOT_UNDER_MIG(); /* nvml.h: NOT_SUPPORTED "If MIG is enabled" */
    *corrected = gpu->remapped_corrected;
    *uncorrected = gpu->remapped_uncorrected;
    *pending = gpu->remap_pending;
    *failure = gpu->remap_failure;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *values) {
    ENTER(device, values);
    NEEDS(ROW_REMAP);
    unsigned int used = gpu->remapped_corrected + gpu->remapped_uncorrected;
    const unsigned int banks = 640;
    memset(values, 0, sizeof *values);
    values->high = used < banks ? used : banks;
    values->max = banks - values->high;
    values->none = gpu->remap_failure;
    return NVML_SUCCESS;
}

/* Addresses of retired pages are made up; their number is the state's. */
static nvmlReturn_t retired(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
                            unsigned long long *addresses, unsigned long long *timestamps) {
    ENTER(device, count);
    NEEDS(RETIRED_PAGES);
    CHECK(cause < NVML_PAGE_RETIREMENT_CAUSE_COUNT);
    unsigned int there = cause == NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR ? gpu->retired_double_bit
                                                                                  : gpu->retired_single_bit;
    unsigned int room = *count;
    *count = there;
    if (room < there)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < there && addresses != NULL; i++) {
        addresses[i] = UINT64_C(0x7fff0000) + 0x1000u * i;
        if (timestamps != NULL)
            timestamps[i] = 0;
    }
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
                                       unsigned long long *addresses) {
    return retired(device, cause, count, addresses, NULL);
}
nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                          unsigned int *count, unsigned long long *addresses,
                                          unsigned long long *timestamps) {
    return retired(device, cause, count, addresses, timestamps);
}
GETTER_IF(RETIRED_PAGES, nvmlDeviceGetRetiredPagesPendingStatus, nvmlEnableState_t, gpu->retired_pending)
