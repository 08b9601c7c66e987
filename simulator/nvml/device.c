/* Identity, clocks, power, temperature, memory and utilization of one GPU. */
#define _GNU_SOURCE
#include "internal.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SUPPORTED_REASONS 0x6ffu /* every documented reason but the display's */

/* Identity. */

#define TEXT(function, field)                                                        \
    nvmlReturn_t function(nvmlDevice_t device, char *text, unsigned int length) {    \
        ENTER(device, text);                                                         \
        return sim_copy(text, length, gpu->field);                                   \
    }
TEXT(nvmlDeviceGetSerial, serial)
TEXT(nvmlDeviceGetBoardPartNumber, board_part_number)
TEXT(nvmlDeviceGetVbiosVersion, vbios_version)

/* These two answer for MIG handles too. */
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned int length) {
    ENTER_ANY(device, text);
    return sim_copy(text, length, mig ? mig->name : gpu->name);
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned int length) {
    ENTER_ANY(device, text);
    return sim_copy(text, length, mig ? mig->uuid : gpu->uuid);
}

nvmlReturn_t nvmlDeviceGetGpuUptime_v1(nvmlDevice_t device, nvmlGpuUptime_v1_t *uptime) {
    ENTER_ANY(device, uptime); /* nvml.h: for MIG handles the parent's uptime is returned */
    SINCE_DRIVER(590);         /* unverified: the header does not say since when */
    uptime->uptime = gpu->uptime_seconds;
    return NVML_SUCCESS;
}

/* The GSP runs firmware of the driver's own version. */
nvmlReturn_t nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t device, char *version) {
    ENTER(device, version);
    return sim_copy(version, NVML_GSP_FIRMWARE_VERSION_BUF_SIZE, sim_state()->driver_version);
}
nvmlReturn_t nvmlDeviceGetGspFirmwareMode(nvmlDevice_t device, unsigned int *enabled, unsigned int *by_default) {
    ENTER(device, enabled);
    CHECK(by_default);
    *enabled = *by_default = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

GETTER(nvmlDeviceGetBrand, nvmlBrandType_t, gpu->brand)
GETTER(nvmlDeviceGetMinorNumber, unsigned int, gpu->minor_number)
GETTER(nvmlDeviceGetModuleId, unsigned int, gpu->module_id)
GETTER(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, gpu->architecture)
GETTER(nvmlDeviceGetNumGpuCores, unsigned int, gpu->cores)
GETTER(nvmlDeviceGetMemoryBusWidth, unsigned int, gpu->memory_bus_bits)
GETTER(nvmlDeviceGetBoardId, unsigned int, gpu->pci_bus << 8)
GETTER(nvmlDeviceGetMultiGpuBoard, unsigned int, 0)
GETTER(nvmlDeviceGetIrqNum, unsigned int, 160 + gpu->minor_number)
GETTER(nvmlDeviceGetPowerSource, nvmlPowerSource_t, NVML_POWER_SOURCE_AC)
GETTER(nvmlDeviceGetBusType, nvmlBusType_t, NVML_BUS_TYPE_PCIE)
GETTER(nvmlDeviceGetComputeMode, nvmlComputeMode_t, NVML_COMPUTEMODE_DEFAULT)
GETTER(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)
GETTER_IF(DISPLAY, nvmlDeviceGetDisplayMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)
GETTER_IF(DISPLAY, nvmlDeviceGetDisplayActive, nvmlEnableState_t, NVML_FEATURE_DISABLED)
GETTER(nvmlDeviceGetVirtualizationMode, nvmlGpuVirtualizationMode_t, NVML_GPU_VIRTUALIZATION_MODE_NONE)
/* nvml.h: "Returns zero if MIG is not supported or enabled." */
GETTER(nvmlDeviceGetMaxMigDeviceCount, unsigned int, gpu->mig_enabled ? SIM_MAX_MIG : 0)

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    ENTER(device, current);
    CHECK(pending);
    NEEDS(MIG);
    *current = *pending = gpu->mig_enabled ? NVML_DEVICE_MIG_ENABLE : NVML_DEVICE_MIG_DISABLE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *handle) {
    ENTER(device, handle);
    NEEDS(MIG);
    if (!gpu->mig_enabled || index >= SIM_MAX_MIG || !gpu->migs[index].present)
        return NVML_ERROR_NOT_FOUND;
    *handle = sim_mig_handle(device, index);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig) {
    ENTER_ANY(device, is_mig);
    *is_mig = mig != NULL;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t *parent) {
    ENTER_ANY(device, parent);
    CHECK(mig);
    *parent = sim_handle((unsigned int)(gpu - sim_state()->gpus));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id) {
    ENTER_ANY(device, id);
    CHECK(mig);
    *id = mig->gpu_instance;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id) {
    ENTER_ANY(device, id);
    CHECK(mig);
    *id = mig->compute_instance;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    ENTER(device, major);
    CHECK(minor);
    *major = (int)gpu->compute_major;
    *minor = (int)gpu->compute_minor;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    ENTER_ANY(device, attributes);
    NEEDS(MIG);
    memset(attributes, 0, sizeof *attributes);
    attributes->multiprocessorCount = mig ? mig->multiprocessors : gpu->multiprocessors;
    attributes->memorySizeMB = (mig ? mig->memory_total_bytes : gpu->memory_total_bytes) >> 20;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    return nvmlDeviceGetAttributes_v2(device, attributes);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    ENTER(device, pci);
    pci->domain = gpu->pci_domain;
    pci->bus = gpu->pci_bus;
    pci->device = gpu->pci_device;
    pci->pciDeviceId = gpu->pci_device_id;
    pci->pciSubSystemId = gpu->pci_subsystem_id;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffffu,
             pci->bus & 0xffu, pci->device & 0x1fu);
    snprintf(pci->busId, sizeof pci->busId, NVML_DEVICE_PCI_BUS_ID_FMT, NVML_DEVICE_PCI_BUS_ID_FMT_ARGS(pci));
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return nvmlDeviceGetPciInfo_v3(device, pci);
}
nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return nvmlDeviceGetPciInfo_v3(device, pci);
}

nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t *pci) {
    ENTER(device, pci);
    VERSIONED(pci, nvmlPciInfoExt_v1);
    pci->domain = gpu->pci_domain;
    pci->bus = gpu->pci_bus;
    pci->device = gpu->pci_device;
    pci->pciDeviceId = gpu->pci_device_id;
    pci->pciSubSystemId = gpu->pci_subsystem_id;
    pci->baseClass = 0x3; /* display controller, 3D */
    pci->subClass = 0x2;
    snprintf(pci->busId, sizeof pci->busId, NVML_DEVICE_PCI_BUS_ID_FMT, NVML_DEVICE_PCI_BUS_ID_FMT_ARGS(pci));
    return NVML_SUCCESS;
}

/* The machine's CPUs are not divided among the GPUs: each GPU is near all of them. */
nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int size, unsigned long *set) {
    ENTER(device, set);
    CHECK(size > 0);
    memset(set, 0, size * sizeof *set);
    const size_t bits = 8 * sizeof *set;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (size_t cpu = 0; cpu < (size_t)cpus && cpu < size * bits; cpu++)
        set[cpu / bits] |= 1ul << cpu % bits;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned int size, unsigned long *set,
                                                 nvmlAffinityScope_t scope) {
    CHECK(scope <= NVML_AFFINITY_SCOPE_SOCKET);
    return nvmlDeviceGetCpuAffinity(device, size, set);
}
nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int size, unsigned long *set,
                                         nvmlAffinityScope_t scope) {
    ENTER(device, set);
    CHECK(size > 0 && scope <= NVML_AFFINITY_SCOPE_SOCKET);
    memset(set, 0, size * sizeof *set);
    set[0] = 1ul << gpu->numa_node;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other,
                                                 nvmlGpuTopologyLevel_t *level) {
    ENTER(one, level);
    sim_gpu_ref second;
    nvmlReturn_t entered = sim_enter(other, level, &second);
    if (entered != NVML_SUCCESS)
        return entered;
    *level = gpu == second                          ? NVML_TOPOLOGY_INTERNAL
             : gpu->numa_node == second->numa_node ? NVML_TOPOLOGY_NODE
                                                    : NVML_TOPOLOGY_SYSTEM;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t one, nvmlDevice_t other, int *same) {
    ENTER(one, same);
    sim_gpu_ref second;
    nvmlReturn_t entered = sim_enter(other, same, &second);
    if (entered != NVML_SUCCESS)
        return entered;
    *same = gpu == second;
    return NVML_SUCCESS;
}

/* Clocks and the reasons that hold them. */

static nvmlReturn_t clock_of(sim_gpu_ref gpu, nvmlClockType_t type, int maximum, unsigned int *mhz) {
    switch (type) {
    case NVML_CLOCK_GRAPHICS:
    case NVML_CLOCK_SM:
        *mhz = maximum ? gpu->max_sm_clock_mhz : gpu->sm_clock_mhz;
        return NVML_SUCCESS;
    case NVML_CLOCK_MEM:
        *mhz = maximum ? gpu->max_memory_clock_mhz : gpu->memory_clock_mhz;
        return NVML_SUCCESS;
    case NVML_CLOCK_VIDEO:
        /* the video clock follows the SM clock */
        *mhz = maximum ? gpu->max_video_clock_mhz
                       : (unsigned int)((uint64_t)gpu->max_video_clock_mhz * gpu->sm_clock_mhz /
                                        gpu->max_sm_clock_mhz);
        return NVML_SUCCESS;
    default:
        return NVML_ERROR_INVALID_ARGUMENT;
    }
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    ENTER(device, clock);
    return clock_of(gpu, type, 0, clock);
}
nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    ENTER(device, clock);
    return clock_of(gpu, type, 1, clock);
}
nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    ENTER(device, clock);
    return clock_of(gpu, type, 1, clock);
}

static nvmlReturn_t application_clock(sim_gpu_ref gpu, nvmlClockType_t type, unsigned int sm, unsigned int *mhz) {
    NEEDS(APPLICATION_CLOCKS);
    if (type == NVML_CLOCK_GRAPHICS || type == NVML_CLOCK_SM)
        *mhz = sm;
    else if (type == NVML_CLOCK_MEM)
        *mhz = gpu->max_memory_clock_mhz;
    else
        return NVML_ERROR_INVALID_ARGUMENT;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    ENTER(device, clock);
    return application_clock(gpu, type, gpu->application_clock_mhz, clock);
}
nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    ENTER(device, clock);
    return application_clock(gpu, type, gpu->default_application_clock_mhz, clock);
}
nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id, unsigned int *clock) {
    switch (id) {
    case NVML_CLOCK_ID_CURRENT:
        return nvmlDeviceGetClockInfo(device, type, clock);
    case NVML_CLOCK_ID_APP_CLOCK_TARGET:
        return nvmlDeviceGetApplicationsClock(device, type, clock);
    case NVML_CLOCK_ID_APP_CLOCK_DEFAULT:
        return nvmlDeviceGetDefaultApplicationsClock(device, type, clock);
    case NVML_CLOCK_ID_CUSTOMER_BOOST_MAX:
        return nvmlDeviceGetMaxCustomerBoostClock(device, type, clock);
    default:
        return NVML_ERROR_INVALID_ARGUMENT;
    }
}

nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count, unsigned int *clocks) {
    ENTER(device, count);
    if (*count < 1 || clocks == NULL) {
        *count = 1;
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    *count = 1;
    clocks[0] = gpu->max_memory_clock_mhz;
    return NVML_SUCCESS;
}

GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, gpu->clock_event_reasons)
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, gpu->clock_event_reasons)
GETTER(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, SUPPORTED_REASONS)
GETTER(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long, SUPPORTED_REASONS)
GETTER(nvmlDeviceGetPerformanceState, nvmlPstates_t, gpu->performance_state)
GETTER(nvmlDeviceGetPowerState, nvmlPstates_t, gpu->performance_state)

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, nvmlPerfPolicyType_t policy,
                                          nvmlViolationTime_t *violation) {
    ENTER(device, violation);
    NEEDS(VIOLATION_COUNTERS);
    switch (policy) {
    case NVML_PERF_POLICY_POWER: violation->violationTime = gpu->throttle_sw_power_ns; break;
    case NVML_PERF_POLICY_THERMAL: violation->violationTime = gpu->throttle_thermal_ns; break;
    case NVML_PERF_POLICY_SYNC_BOOST: violation->violationTime = gpu->throttle_sync_boost_ns; break;
    case NVML_PERF_POLICY_BOARD_LIMIT: violation->violationTime = gpu->throttle_board_limit_ns; break;
    case NVML_PERF_POLICY_LOW_UTILIZATION: violation->violationTime = gpu->throttle_low_utilization_ns; break;
    case NVML_PERF_POLICY_RELIABILITY: violation->violationTime = gpu->throttle_reliability_ns; break;
    case NVML_PERF_POLICY_TOTAL_APP_CLOCKS: violation->violationTime = gpu->throttle_app_clocks_ns; break;
    case NVML_PERF_POLICY_TOTAL_BASE_CLOCKS: violation->violationTime = gpu->throttle_base_clocks_ns; break;
    default: return NVML_ERROR_INVALID_ARGUMENT;
    }
    violation->referenceTime = sim_realtime_us();
    return NVML_SUCCESS;
}

/* Power. */

/* nvml.h, nvmlDeviceGetPowerUsage: a 1 s average on Ampere (except GA100) or newer, else instantaneous. */
unsigned int sim_power_usage(sim_gpu_ref gpu) {
    return gpu->not_supported & SIM_FEATURE_POWER_AVERAGE ? gpu->power_instant_mw : gpu->power_average_mw;
}
GETTER(nvmlDeviceGetPowerUsage, unsigned int, sim_power_usage(gpu))
GETTER(nvmlDeviceGetPowerManagementMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned int, gpu->power_requested_limit_mw)
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, gpu->power_default_limit_mw)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, gpu->power_limit_mw)
GETTER_IF(ENERGY, nvmlDeviceGetTotalEnergyConsumption, unsigned long long, gpu->energy_mj)

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *minimum,
                                                          unsigned int *maximum) {
    ENTER(device, minimum);
    CHECK(maximum);
    *minimum = gpu->power_min_limit_mw;
    *maximum = gpu->power_max_limit_mw;
    return NVML_SUCCESS;
}

/* Temperature. */

int sim_temperature(double celsius) { return (int)(celsius + 0.5); }

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius) {
    ENTER(device, celsius);
    CHECK(sensor == NVML_TEMPERATURE_GPU);
    *celsius = (unsigned int)sim_temperature(gpu->temperature_celsius);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    ENTER(device, temperature);
    VERSIONED(temperature, nvmlTemperature_v1);
    CHECK(temperature->sensorType == NVML_TEMPERATURE_GPU);
    temperature->temperature = sim_temperature(gpu->temperature_celsius);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t threshold,
                                               unsigned int *celsius) {
    ENTER(device, celsius);
    switch (threshold) {
    case NVML_TEMPERATURE_THRESHOLD_SHUTDOWN: *celsius = (unsigned int)gpu->shutdown_celsius; break;
    case NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: *celsius = (unsigned int)gpu->slowdown_celsius; break;
    case NVML_TEMPERATURE_THRESHOLD_GPU_MAX: *celsius = (unsigned int)gpu->gpu_max_celsius; break;
    case NVML_TEMPERATURE_THRESHOLD_MEM_MAX:
        NEEDS(MEMORY_TEMPERATURE);
        *celsius = (unsigned int)gpu->memory_max_celsius;
        break;
    default:
        return threshold < NVML_TEMPERATURE_THRESHOLD_COUNT ? NVML_ERROR_NOT_SUPPORTED
                                                            : NVML_ERROR_INVALID_ARGUMENT;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_t *margin) {
    ENTER(device, margin);
    VERSIONED(margin, nvmlMarginTemperature_v1);
    NEEDS(TLIMIT);
    margin->marginTemperature = gpu->gpu_max_celsius - sim_temperature(gpu->temperature_celsius);
    return NVML_SUCCESS;
}

/* Memory. */

/* An instance has no reserve of its own to tell: what the driver keeps of it is unverified. */
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    ENTER_ANY(device, memory);
    if (mig) {
        memory->total = mig->memory_total_bytes;
        memory->used = mig->memory_used_bytes;
        memory->free = memory->total - memory->used;
        return NVML_SUCCESS;
    }
    memory->total = gpu->memory_total_bytes;
    memory->used = gpu->memory_reserved_bytes + gpu->memory_used_bytes; /* v1 counts the reserved part as used */
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    ENTER_ANY(device, memory);
    VERSIONED(memory, nvmlMemory_v2);
    if (mig) {
        memory->total = mig->memory_total_bytes;
        memory->reserved = 0;
        memory->used = mig->memory_used_bytes;
        memory->free = memory->total - memory->used;
        return NVML_SUCCESS;
    }
    memory->total = gpu->memory_total_bytes;
    memory->reserved = gpu->memory_reserved_bytes;
    memory->used = gpu->memory_used_bytes;
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory) {
    ENTER(device, memory);
    memory->bar1Total = gpu->bar1_total_bytes;
    memory->bar1Used = gpu->bar1_used_bytes;
    memory->bar1Free = memory->bar1Total - memory->bar1Used;
    return NVML_SUCCESS;
}

/* Utilization and the sample buffers. */

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    ENTER(device, utilization);
    NEEDS(UTILIZATION);
    NOT_UNDER_MIG(); /* nvml.h: "On MIG-enabled GPUs, querying device utilization rates is not currently supported." */
    utilization->gpu = gpu->utilization_percent;
    utilization->memory = gpu->memory_utilization_percent;
    return NVML_SUCCESS;
}

/* The media engines are idle in training. */
#define IDLE_ENGINE(function)                                                                     \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *utilization, unsigned int *period) { \
        ENTER(device, utilization);                                                               \
        CHECK(period);                                                                            \
        *utilization = 0;                                                                         \
        *period = 167000;                                                                         \
        return NVML_SUCCESS;                                                                      \
    }
IDLE_ENGINE(nvmlDeviceGetEncoderUtilization)
IDLE_ENGINE(nvmlDeviceGetDecoderUtilization)
IDLE_ENGINE(nvmlDeviceGetJpgUtilization)
IDLE_ENGINE(nvmlDeviceGetOfaUtilization)

nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type, unsigned long long last_seen,
                                  nvmlValueType_t *value_type, unsigned int *count, nvmlSample_t *samples) {
    ENTER(device, count);
    CHECK(value_type && (samples == NULL || *count > 0));
    switch (type) {
    case NVML_TOTAL_POWER_SAMPLES:
    case NVML_PROCESSOR_CLK_SAMPLES:
    case NVML_MEMORY_CLK_SAMPLES:
        break;
    case NVML_GPU_UTILIZATION_SAMPLES:
    case NVML_MEMORY_UTILIZATION_SAMPLES:
        NEEDS(UTILIZATION);
        NOT_UNDER_MIG(); /* nvml.h, nvmlDeviceGetSamples: these types are not supported on MIG-enabled GPUs */
        break;
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (samples == NULL) {
        *count = SIM_RING_VISIBLE;
        return NVML_SUCCESS;
    }
    uint64_t written = gpu->sample_count;
    unsigned int room = *count, found = 0;
    for (uint64_t i = written > SIM_RING_VISIBLE ? written - SIM_RING_VISIBLE : 0; i < written && found < room; i++) {
        const volatile sim_sample *sample = &gpu->samples[i % SIM_RING_SLOTS];
        if (sample->timestamp_us <= last_seen)
            continue;
        nvmlSample_t *out = &samples[found++];
        out->timeStamp = sample->timestamp_us;
        out->sampleValue.ullVal = 0;
        out->sampleValue.uiVal = type == NVML_TOTAL_POWER_SAMPLES          ? sample->power_mw
                                 : type == NVML_GPU_UTILIZATION_SAMPLES    ? sample->utilization_percent
                                 : type == NVML_MEMORY_UTILIZATION_SAMPLES ? sample->memory_utilization_percent
                                 : type == NVML_PROCESSOR_CLK_SAMPLES      ? sample->sm_clock_mhz
                                                                           : sample->memory_clock_mhz;
    }
    *count = found;
    return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
