/* Event sets: every waiter reads the shared stream of events from the place where it registered. */
#include "internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define POLL_NS 100000000u
#define MAX_SETS 64
#define ALL_EVENTS (nvmlEventTypeXidCriticalError | nvmlEventTypeSingleBitEccError | nvmlEventTypeDoubleBitEccError | \
                    nvmlEventTypePState | nvmlEventTypeClock | nvmlEventTypeDramRetirementFailure | \
                    nvmlEventTypeGpuRecoveryAction)

struct nvmlEventSet_st {
    uint64_t cursor;
    uint64_t types[SIM_MAX_GPUS];
    uint64_t since[SIM_MAX_GPUS]; /* events before the registration are not reported */
    uint64_t structured_since[SIM_MAX_GPUS]; /* one more than that place for structured events; 0: not subscribed */
    uint32_t least_log_level[SIM_MAX_GPUS], least_severity[SIM_MAX_GPUS];
    int told;             /* an event has been returned in the extended format */
    uint32_t context_xid; /* the Xid that the last one carried */
};

/* One event as either format tells it. */
typedef struct {
    unsigned int gpu;
    uint64_t type, data;
    const volatile sim_event *structured; /* NULL for an event bit */
} taken_event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static nvmlEventSet_t sets[MAX_SETS];

static int known(nvmlEventSet_t set) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_SETS && !found; i++)
        found = set != NULL && sets[i] == set;
    pthread_mutex_unlock(&lock);
    return found;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    CHECK(set);
    nvmlEventSet_t fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL)
        return NVML_ERROR_MEMORY;
    fresh->cursor = sim_state()->event_count;
    nvmlReturn_t result = NVML_ERROR_INSUFFICIENT_RESOURCES;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_SETS; i++)
        if (sets[i] == NULL) {
            *set = sets[i] = fresh;
            result = NVML_SUCCESS;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (result != NVML_SUCCESS)
        free(fresh);
    return result;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    nvmlReturn_t result = NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_SETS; i++)
        if (set != NULL && sets[i] == set) {
            sets[i] = NULL;
            result = NVML_SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    if (result == NVML_SUCCESS)
        free(set);
    return result;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    ENTER(device, types);
    *types = gpu->not_supported & SIM_FEATURE_EVENTS ? 0 : ALL_EVENTS;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    ENTER(device, set);
    CHECK(known(set));
    NEEDS(EVENTS);
    if (types & ~(unsigned long long)ALL_EVENTS)
        return NVML_ERROR_NOT_SUPPORTED;
    size_t slot = (size_t)(gpu - sim_state()->gpus);
    if (set->types[slot] == 0)
        set->since[slot] = sim_state()->event_count;
    set->types[slot] |= types;
    return NVML_SUCCESS;
}

static int wanted(nvmlEventSet_t set, const volatile sim_event *event, uint64_t place) {
    unsigned int slot = event->gpu;
    if (event->structured)
        return set->structured_since[slot] && place + 1 >= set->structured_since[slot] &&
               event->log_level >= set->least_log_level[slot] && event->severity >= set->least_severity[slot];
    return place >= set->since[slot] && (set->types[slot] & event->event_type);
}

/* Takes the next event the set asked for; 0 if there is none yet. Structured ones wait for who can read them. */
static int take(nvmlEventSet_t set, int extended, taken_event *taken) {
    const volatile sim_node *node = sim_state();
    uint64_t count = node->event_count;
    if (count - set->cursor > SIM_EVENT_SLOTS)
        set->cursor = count - SIM_EVENT_SLOTS; /* overwritten: a queue that long loses its oldest */
    while (set->cursor < count) {
        uint64_t place = set->cursor++;
        const volatile sim_event *event = &node->events[place % SIM_EVENT_SLOTS];
        unsigned int slot = event->gpu;
        if (event->sequence != place + 1 || slot >= SIM_MAX_GPUS || (event->structured && !extended))
            continue;
        if (!wanted(set, event, place))
            continue;
        taken->gpu = slot;
        taken->type = event->structured ? nvmlEventTypeNone : event->event_type;
        taken->data = taken->type == nvmlEventTypeXidCriticalError ? event->event_data : 0;
        taken->structured = event->structured ? event : NULL;
        return 1;
    }
    return 0;
}

static int any_lost(nvmlEventSet_t set) {
    for (unsigned int i = 0; i < sim_state()->gpu_count; i++)
        if (set->types[i] && sim_state()->gpus[i].lost)
            return 1;
    return 0;
}

static nvmlReturn_t wait_for(nvmlEventSet_t set, unsigned int timeout_ms, int extended, taken_event *taken) {
    uint64_t end = sim_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    for (;;) {
        if (take(set, extended, taken))
            return NVML_SUCCESS;
        if (any_lost(set))
            return NVML_ERROR_GPU_IS_LOST;
        uint64_t now = sim_monotonic_ns();
        if (now >= end)
            return NVML_ERROR_TIMEOUT;
        sim_sleep_ns(end - now < POLL_NS ? end - now : POLL_NS);
    }
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    CHECK(data && known(set));
    taken_event taken;
    nvmlReturn_t result = wait_for(set, timeout_ms, 0, &taken);
    if (result == NVML_SUCCESS) {
        data->device = sim_handle(taken.gpu);
        data->eventType = taken.type;
        data->eventData = taken.data;
        data->gpuInstanceId = data->computeInstanceId = NVML_GPU_INSTANCE_ID_ANY;
    }
    return result;
}
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return nvmlEventSetWait_v2(set, data, timeout_ms);
}

/* Structured GPU events, "For Turing or newer". Which driver first has them is unverified. */

#define FIRST_STRUCTURED 595

nvmlReturn_t nvmlEventSetRegisterGpuOperationalEvents_v1(nvmlEventSet_t set,
                                                         const nvmlGpuOperationalEventConfig_v1_t *config) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    SINCE_DRIVER(FIRST_STRUCTURED);
    CHECK(config && known(set));
    const volatile sim_node *node = sim_state();
    for (unsigned int i = 0; i < node->gpu_count; i++)
        if (strcmp(config->uuid, (const char *)node->gpus[i].uuid) == 0) {
            sim_gpu_ref gpu = &node->gpus[i];
            if (gpu->lost)
                return NVML_ERROR_GPU_IS_LOST;
            if (set->structured_since[i] == 0)
                set->structured_since[i] = node->event_count + 1;
            set->least_log_level[i] = config->minLogLevel;
            set->least_severity[i] = config->minSeverity;
            return NVML_SUCCESS;
        }
    return NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlEventSetWait_v3(nvmlEventSet_t set, nvmlEventSetWait_v3_t *params) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    SINCE_DRIVER(FIRST_STRUCTURED);
    CHECK(params && known(set));
    taken_event taken;
    nvmlReturn_t result = wait_for(set, params->timeoutMs, 1, &taken);
    if (result != NVML_SUCCESS)
        return result;
    unsigned int timeout_ms = params->timeoutMs;
    memset(params, 0, sizeof *params);
    params->timeoutMs = timeout_ms;
    params->eventType = taken.type;
    params->eventData = taken.data;
    params->gpuInstanceId = NVML_GPU_INSTANCE_ID_ANY;
    params->computeInstanceId = NVML_COMPUTE_INSTANCE_ID_ANY;
    params->timestampUsec = sim_realtime_us();
    set->told = 1;
    set->context_xid = 0;
    const volatile sim_event *event = taken.structured;
    if (event != NULL) {
        params->dataType = NVML_EVENT_DATA_TYPE_GPU_OPERATIONAL_EVENT;
        memcpy(params->sourceModule, (const char *)event->module, sizeof params->sourceModule);
        params->groupCursor = event->group_cursor;
        params->instanceId = event->sequence;
        params->severity = event->severity;
        params->moduleEventCode = event->code;
        params->logLevel = event->log_level;
        params->attributes = event->attributes;
        params->groupSize = (unsigned char)event->group_size;
        params->groupIndex = (unsigned char)event->group_index;
        set->context_xid = event->legacy_xid;
    }
    return sim_copy(params->uuid, sizeof params->uuid, sim_state()->gpus[taken.gpu].uuid);
}

static nvmlReturn_t context(nvmlEventSet_t set, const void *params, unsigned int index) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    SINCE_DRIVER(FIRST_STRUCTURED);
    CHECK(params && known(set));
    if (!set->told)
        return NVML_ERROR_NOT_FOUND;
    CHECK(index < (set->context_xid ? 1u : 0u));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetGetContextCount_v1(nvmlEventSet_t set, nvmlEventSetGetContextCount_v1_t *params) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    SINCE_DRIVER(FIRST_STRUCTURED);
    CHECK(params && known(set));
    if (!set->told)
        return NVML_ERROR_NOT_FOUND;
    params->count = set->context_xid ? 1 : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetGetContextInfo_v1(nvmlEventSet_t set, nvmlEventSetGetContextInfo_v1_t *params) {
    nvmlReturn_t found = context(set, params, params ? params->index : 0);
    if (found == NVML_SUCCESS) {
        params->nvmlGpuOperationalEventContextType = NVML_GPU_OPERATIONAL_EVENT_CONTEXT_TYPE_LEGACY_XID;
        params->sourceEventContextType = 0;
        params->dataSize = sizeof set->context_xid;
        params->dataFormatVersion = 1;
    }
    return found;
}

nvmlReturn_t nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1(
    nvmlEventSet_t set, nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1_t *params) {
    nvmlReturn_t found = context(set, params, params ? params->index : 0);
    if (found == NVML_SUCCESS)
        params->xidCode = set->context_xid;
    return found;
}
